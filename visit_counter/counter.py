"""The visit counter: count = stored + pending, for the profiles that write through the journal.

The stored part comes from the local cache (`Known`, read less than the cache time ago) or from one read of the
owning shard. Pending is added after the cache, so a cached answer still shows this host's visits at once.

The rule that keeps a count right while segments move from pending to stored: the journal, the cached entries and the
tables of pending visits are looked at together, under the buffer's lock. A read of a shard happens outside of it and is
taken over only if nothing that it depends on has moved meanwhile; else it is made again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from visit_counter.answers import Answer
from visit_counter.errors import CountUnknownError, JournalError, StoreError
from visit_counter.ring import partition_of
from visit_counter.singleflight import SingleFlight
from visit_counter.stores.base import NO_WATERMARK, Stored, is_base, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from visit_counter.buffer import WriteBuffer
    from visit_counter.cache import LocalCache
    from visit_counter.stores.base import Store

log = logging.getLogger(__name__)

IN_MEMORY = "in_memory"
# How often a read is made again because a flush was confirmed while it was under way. Each needs a flush of its own.
_READ_TRIES = 5
_LAST_KNOWN_SECONDS = 1.0


class VisitCounter(Protocol):
    """What the routes, the commands and the worker's loop call."""

    def record(self, page: str, visits: int = 1) -> Answer:
        """Count visits of a page; may wait for a shard. Raises JournalError, StoreError: nothing was counted."""
        ...

    def count(self, page: str) -> Answer:
        """Read the count of a page; may wait for a shard. Raises CountUnknownError, StoreError."""
        ...

    def answer_ready(self, requests: Sequence[tuple[bool, str]]) -> list[Answer | None]:
        """Answer what needs no waiting: (True, page) counts a visit, (False, page) reads.

        None: this one would wait or was refused, and nothing was recorded for it; call `record` or `count`.
        """
        ...


class Known(NamedTuple):
    """What is cached of a page: its stored count, which includes this host's segments up to number `segment`."""

    stored: int
    segment: int


class BufferedCounter:
    """Counts through the write buffer. `post_via(page)` and `stored_via(page)` give what the answers name."""

    def __init__(  # noqa: PLR0913 - all are named in the one call there is
        self,
        buffer: WriteBuffer,
        store: Store,
        cache: LocalCache,
        *,
        post_via: Callable[[str], str],
        stored_via: Callable[[str], str],
        pending_via: str | None = None,
    ) -> None:
        self.buffer, self.store, self.cache = buffer, store, cache
        self._post_via, self._stored_via, self._pending_via = post_via, stored_via, pending_via
        self._reads: SingleFlight[None] = SingleFlight()

    def record(self, page: str, visits: int = 1) -> Answer:
        """Count visits of a page: 200 with the count, or 202 with the pending part alone if the rest is unknown."""
        try:
            self._learn(page)
        except StoreError as error:
            log.debug("counting %s without its stored part: %s", page, error)
        with self.buffer.lock:
            [current] = self.buffer.append([(page, visits)])
            known: Known | None = self.cache.peek(page)
            if known is None:
                return Answer(self.buffer.tables.pending(page, self.buffer.included_to), self._post_via(page), 202)
            pending = current + self.buffer.tables.pending_sealed(page, known.segment)
            return Answer(known.stored + pending, self._post_via(page))

    def count(self, page: str) -> Answer:
        """Read the count of a page."""
        cached = self.cache.get(page) is not None
        if not cached:
            try:
                self._learn(page)
            except StoreError as error:
                if self.cache.peek(page) is None:
                    raise CountUnknownError(f"the stored count of this page cannot be read now: {error}") from None
        with self.buffer.lock:
            self.buffer.catch_up()
            known: Known | None = self.cache.peek(page)
            if known is None:
                raise CountUnknownError("the cache is too small for the pages being read; raise VISITS_CACHE_PAGES")
            pending = self.buffer.tables.pending(page, known.segment)
        if cached:
            via = IN_MEMORY
        elif pending and self._pending_via:
            via = self._pending_via
        else:
            via = self._stored_via(page)
        return Answer(known.stored + pending, via)

    def answer_ready(self, requests: Sequence[tuple[bool, str]]) -> list[Answer | None]:
        """See VisitCounter.answer_ready: all visits go into the journal with one append."""
        cache, buffer, tables = self.cache, self.buffer, self.buffer.tables
        with buffer.lock:
            # Before the entries are looked at: what others sealed and flushed is in a table or in an entry.
            buffer.catch_up()
            entries: list[Known | None] = [cache.get(page) for _, page in requests]
            run = [
                (page, 1)
                for (is_visit, page), known in zip(requests, entries, strict=True)
                if is_visit and known is not None
            ]
            try:
                currents = iter(buffer.append(run) if run else ())
            except JournalError:
                currents = iter(())
            answers: list[Answer | None] = []
            for (is_visit, page), known in zip(requests, entries, strict=True):
                if known is None:
                    answers.append(None)
                elif is_visit:
                    current = next(currents, None)
                    if current is None:
                        answers.append(None)
                        continue
                    count = known.stored + current + tables.pending_sealed(page, known.segment)
                    answers.append(Answer(count, self._post_via(page)))
                else:
                    answers.append(Answer(known.stored + tables.pending(page, known.segment), IN_MEMORY))
            return answers

    def rebase(self, page: str, visits: int, last: int) -> None:
        """Raise a cached count by the visits of a table that is about to be dropped. The lock is held."""
        known: Known | None = self.cache.peek(page)
        if known is not None and known.segment < last:
            self.cache.amend(page, Known(known.stored + visits, last))

    # -- the stored part -------------------------------------------------------------------------------------------

    def learn(self, pages: Sequence[str]) -> None:
        """Have these pages in the cache, with one call of the store. Raises StoreError, which may have spared some."""
        self._read([page for page in pages if self.cache.get(page) is None])

    def _learn(self, page: str) -> None:
        """Have the page in the cache, read less than the cache time ago. Raises StoreError.

        If the shard cannot be asked, a last known count is good for a moment more, so that the next visitors of the
        page do not ask again, each in turn.
        """
        if self.cache.get(page) is not None:
            return
        try:
            self._reads.do(page, lambda: self._read([page]))
        except StoreError:
            with self.buffer.lock:
                known: Known | None = self.cache.peek(page)
                if known is not None:
                    self.cache.set(page, known, timeout=_LAST_KNOWN_SECONDS)
            raise

    def _read(self, pages: Sequence[str]) -> None:
        for _ in range(_READ_TRIES):
            if not pages:
                return
            with self.buffer.lock:
                self.buffer.catch_up()
                included, writer = self.buffer.included_to, self.buffer.writer
            found = self.store.read(writer, pages)
            with self.buffer.lock:
                pages = [
                    page
                    for page, stored in zip(pages, found, strict=True)
                    if not self._take_over(page, stored, included)
                ]
        if pages:
            raise StoreError(self._stored_via(pages[0]), "a flush was confirmed during every read")

    def _take_over(self, page: str, stored: Stored, included: int) -> bool:
        """Put a read into the cache; False if it must be made again. `included`: `included_to` when it began."""
        confirmed = self.buffer.state.confirmed.get(partition_of(page), NO_WATERMARK)
        has_base = stored.watermark == NO_WATERMARK and is_base(confirmed)
        segment = segment_of(confirmed if has_base else stored.watermark)
        known: Known | None = self.cache.peek(page)
        if segment < segment_of(confirmed):
            # Less than the partition is known to have had: the read began before the flush, or the shard came back
            # with older data and is being made whole.
            if included != self.buffer.included_to:
                return False
            if known is None:
                known = Known(stored.visits + self.buffer.retained(page, segment), self.buffer.included_to)
            self.cache.set(page, known)
            return True
        if segment < self.buffer.included_to:
            if included != self.buffer.included_to:
                return False
            # Nothing between the watermark and `included_to` was for this partition.
            segment = included
        if known is None or known.segment <= segment:
            known = Known(stored.visits, segment)
        self.cache.set(page, known)
        return True
