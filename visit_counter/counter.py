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

from visit_counter.answers import Answer, Ask
from visit_counter.errors import CountUnknownError, JournalError, StoreError
from visit_counter.ring import partition_of
from visit_counter.singleflight import SingleFlight
from visit_counter.stores.base import NO_WATERMARK, Stored, is_base, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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

    def answer_ready(self, requests: Sequence[Ask]) -> list[Answer | None]:
        """Answer what needs no waiting.

        None: this one would wait or was refused, and nothing was recorded for it; call `record` or `count`.
        """
        ...


class Known(NamedTuple):
    """What is cached of a page: its stored count, which includes this host's segments up to number `segment`.

    The later of two is the greater: a segment is never taken back, and within one the count only grows.
    """

    segment: int
    stored: int


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
        self._loads = 0  # of the buffer when the cache was last cleared
        self._losses = 0  # of the state when the cache was last cleared

    def record(self, page: str, visits: int = 1) -> Answer:
        """Count visits of a page: 200 with the count, or 202 with the pending part alone if the rest is unknown."""
        try:
            self._learn(page)
        except StoreError as error:
            log.debug("counting %s without its stored part: %s", page, error)
        with self.buffer.lock:
            [current] = self.buffer.append([(page, visits)])
            self._drop_void()
            known: Known | None = self.cache.peek(page)
            if known is None:
                return Answer(self.buffer.tables.pending(page, self.buffer.included_to), self._post_via(page), 202)
            pending = current + self.buffer.tables.pending_sealed(page, known.segment)
            return Answer(known.stored + pending, self._post_via(page))

    def count(self, page: str) -> Answer:
        """Read the count of a page."""
        with self.buffer.lock:
            cached = self._known(page) is not None
        if not cached:
            try:
                self._learn(page)
            except StoreError as error:
                if self.cache.peek(page) is None:
                    raise CountUnknownError(f"the stored count of this page cannot be read now: {error}") from None
        with self.buffer.lock:
            self.buffer.catch_up()
            self._drop_void()
            known: Known | None = self.cache.peek(page)
            if known is None:
                raise CountUnknownError("the cache is too small for the pages being read; raise VISITS_CACHE_PAGES")
            pending = self.buffer.tables.pending(page, known.segment)
        return Answer(known.stored + pending, IN_MEMORY if cached else self._read_via(page, pending))

    def _read_via(self, page: str, pending: int) -> str:
        """Return what a count is said to come from whose stored part was read for it."""
        return self._pending_via if pending and self._pending_via else self._stored_via(page)

    def answer_ready(self, requests: Sequence[Ask]) -> list[Answer | None]:
        """See VisitCounter.answer_ready: all visits go into the journal with one append."""
        buffer = self.buffer
        with buffer.lock:
            # Before the entries are looked at: what others sealed and flushed is in a table or in an entry.
            buffer.catch_up()
            self._drop_void()
            fresh, any_age, known = self.cache.get, self.cache.peek, self._known
            entries: list[Known | None] = [
                (any_age if ask.was_read else fresh)(ask.page) or known(ask.page) for ask in requests
            ]
            run = [(ask.page, 1) for ask, entry in zip(requests, entries, strict=True) if ask.is_visit and entry]
            try:
                currents = iter(buffer.append(run) if run else ())
            except JournalError:
                currents = iter(())
            is_void = self._loads != buffer.loads  # what was cached; see `_drop_void`
            self._drop_void()
            tables = buffer.tables
            answers: list[Answer | None] = []
            for ask, entry in zip(requests, entries, strict=True):
                page = ask.page
                current = next(currents, None) if ask.is_visit and entry else None
                if entry is None or (current is None and (ask.is_visit or is_void)):
                    answers.append(None)
                elif is_void:
                    answers.append(Answer(tables.pending(page, buffer.included_to), self._post_via(page), 202))
                elif current is None:
                    pending = tables.pending(page, entry.segment)
                    answers.append(
                        Answer(entry.stored + pending, self._read_via(page, pending) if ask.was_read else IN_MEMORY)
                    )
                else:
                    earlier = tables.pending_sealed(page, entry.segment) if tables.sealed else 0
                    answers.append(Answer(entry.stored + earlier + current, self._post_via(page)))
            return answers

    def tick(self) -> None:
        """Follow the journal; called once a second."""
        self.buffer.tick(self.rebase)
        with self.buffer.lock:
            if self._losses != self.buffer.state.losses:
                # A shard has lost visits for good: what was known before is more than there will be.
                self._losses = self.buffer.state.losses
                self.cache.clear()

    def rebase(self, page: str, visits: int, last: int) -> None:
        """Raise a cached count by the visits of a table that is about to be dropped. The lock is held."""
        known: Known | None = self.cache.peek(page)
        if known is not None and known.segment < last:
            self.cache.amend(page, Known(last, known.stored + visits))

    # -- the stored part -------------------------------------------------------------------------------------------

    def _known(self, page: str) -> Known | None:
        """Return what is cached of a page, or its last known count while its shard is away. The lock is held.

        Nobody waits for a shard that is known to be away, in a thread or in line for one: visits of the other shards'
        pages would wait behind them. The service's probes find out when it is back.
        """
        known: Known | None = self.cache.get(page)
        if known is None and self.store.is_away(page):
            known = self.cache.peek(page)
            if known is not None:
                # Not evicted either, as long as it is asked for.
                self.cache.set(page, known, timeout=_LAST_KNOWN_SECONDS)
        return known

    def by_shard(self, pages: Iterable[str]) -> list[list[str]]:
        """Return the pages in groups, one for each shard, so that `learn` need not wait for one to read another's."""
        groups: dict[str, list[str]] = {}
        for page in pages:
            groups.setdefault(self.store.owner(page), []).append(page)
        return list(groups.values())

    def learn(self, pages: Sequence[str]) -> None:
        """Have these pages in the cache, with one call of the store. Raises StoreError, which may have spared some."""
        with self.buffer.lock:
            unknown = [page for page in pages if self._known(page) is None]
        self._read(unknown)

    def _learn(self, page: str) -> None:
        """Have the page in the cache, read less than the cache time ago. Raises StoreError.

        If the shard cannot be asked, a last known count is good for a moment more, so that the next visitors of the
        page do not ask again, each in turn.
        """
        with self.buffer.lock:
            if self._known(page) is not None:
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
                self._drop_void()
                state, loads = self.buffer.state, self.buffer.loads
            found = self.store.read(self.buffer.writer, pages)
            with self.buffer.lock:
                if state is not self.buffer.state or loads != self.buffer.loads:
                    continue  # nobody could tell a shard that lost something from a read before its flush
                pages = [page for page, stored in zip(pages, found, strict=True) if not self._take_over(page, stored)]
        if pages:
            raise StoreError(self._stored_via(pages[0]), "a flush was confirmed during every read")

    def _drop_void(self) -> None:
        """Drop the cache if the buffer has started anew since; see `WriteBuffer.loads`. The lock is held."""
        if self._loads != self.buffer.loads:
            self._loads = self.buffer.loads
            self.cache.clear()

    def _take_over(self, page: str, stored: Stored) -> bool:
        """Put a read into the cache; False if it must be made again."""
        confirmed = self.buffer.state.confirmed.get(partition_of(page), NO_WATERMARK)
        has_base = stored.watermark == NO_WATERMARK and is_base(confirmed)
        segment = segment_of(confirmed if has_base else stored.watermark)
        known: Known | None = self.cache.peek(page)
        if segment < segment_of(confirmed):
            # Less than the partition is known to have had: the shard came back with older data.
            if known is None:
                try:
                    visits = stored.visits + self.buffer.retained(page, segment)
                except FileNotFoundError:
                    return False  # the flush has made the shard whole, and forgotten a segment
                known = Known(max(segment, self.buffer.included_to), visits)
            self.cache.set(page, known)
            return True
        # Nothing between the watermark and `included_to` was for this partition.
        segment = max(segment, self.buffer.included_to)
        # Two reads of one page may overtake each other; counts only grow, so the larger is the later.
        self.cache.set(page, max(Known(segment, stored.visits), known or Known(0, 0)))
        return True
