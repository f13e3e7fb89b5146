"""The visit counter: count = stored + pending, for the profiles that write through the journal.

The stored part comes from the local cache (`Known`, read less than the cache time ago) or from one read of the
owning shard. Pending is added after the cache, so a cached answer still shows this host's visits at once.

The rule that keeps a count right while segments move from pending to stored: the journal, the cached entries and the
tables of pending visits are looked at together, under the buffer's lock. A read of a shard happens outside of it and is
taken over only if nothing that it depends on has moved meanwhile; else it is made again.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.answers import Accepted, Answer, Ask, Outcome
from visit_counter.errors import CountUnknownError, JournalError, StoreError, UncertainError, VisitCounterError
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


class VisitCounter(ABC):
    """What the routes, the commands and the worker's loop call."""

    @abstractmethod
    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """Count the visits and read the counts; return what came of each, in order.

        Without `wait` nothing is waited for but the journal: None says that an ask has to wait for a shard, and that
        nothing was recorded for it; ask again with `wait`, from a thread that may. With `wait` there is no None.
        """

    @abstractmethod
    def owner(self, page: str) -> str:
        """Return who keeps a page; those who wait for pages of one owner wait together, and not for another."""

    def record(self, page: str, visits: int = 1) -> Answer | Accepted:
        """Count visits of a page; may wait for a shard. Raises the VisitCounterErrors of `answer`."""
        return _told(self.answer([Ask(True, page, visits)], wait=True))

    def count(self, page: str) -> Answer:
        """Read the count of a page; may wait for a shard. Raises CountUnknownError, StoreError."""
        answer = _told(self.answer([Ask(False, page)], wait=True))
        assert isinstance(answer, Answer)  # noqa: S101 - only a visit is accepted without a count
        return answer


def _told(outcomes: Sequence[Outcome]) -> Answer | Accepted:
    [outcome] = outcomes
    if isinstance(outcome, VisitCounterError):
        raise outcome
    assert outcome is not None  # noqa: S101 - it was asked to wait
    return outcome


class Known(NamedTuple):
    """What is cached of a page: its stored count, which includes this host's segments up to number `segment`.

    The later of two is the greater: a segment is never taken back, and within one the count only grows.
    """

    segment: int
    stored: int


class Read(NamedTuple):
    """What a read found; true as long as the version of the tables is this one, or raised in the cache."""

    known: Known
    version: tuple[int, int]


class Loaded(NamedTuple):
    """The pages that were loaded for some asks: what was read of them, or why that cannot be."""

    read: dict[str, Read]
    errors: dict[str, StoreError]


_NOTHING = Loaded({}, {})
_CUT = JournalError("the disk took a part of what was written, and not this visit")


class BufferedCounter(VisitCounter):
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
        self._reads: SingleFlight[Read] = SingleFlight()
        self._loads = 0  # of the buffer when the cache was last cleared
        self._losses = 0  # of the state when the cache was last cleared

    def owner(self, page: str) -> str:
        """Return the shard that has a page."""
        return self.store.owner(page)

    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """See VisitCounter.answer; all visits go into the journal with one append."""
        outcomes = self._answer(asks, _NOTHING)
        if wait and None in outcomes:
            loaded = Loaded({}, {})
            while None in outcomes:
                waiting = [ask for ask, outcome in zip(asks, outcomes, strict=True) if outcome is None]
                self.load([ask.page for ask in waiting], loaded)
                found = iter(self._answer(waiting, loaded))
                outcomes = [next(found) if outcome is None else outcome for outcome in outcomes]
        return outcomes

    def _answer(self, asks: Sequence[Ask], loaded: Loaded) -> list[Outcome]:
        """Answer all asks whose page is known, was loaded for them, or cannot be had; None for the others."""
        buffer = self.buffer
        with buffer.lock:
            # Before the entries are looked at: what others sealed and flushed is in a table or in an entry.
            buffer.catch_up()
            self._drop_void()
            fresh, known = self.cache.get, self._known
            if loaded is _NOTHING:
                entries: list[Known | None] = [fresh(ask.page) or known(ask.page) for ask in asks]
            else:
                entries = [self._loaded(ask.page, loaded) for ask in asks]
            unknown = loaded.errors
            run = [
                (ask.page, ask.visits)
                for ask, entry in zip(asks, entries, strict=True)
                if ask.is_visit and (entry or ask.page in unknown)
            ]
            refusal: VisitCounterError = _CUT
            try:
                currents = iter(buffer.append(run) if run else ())
            except (JournalError, UncertainError) as error:
                refusal, currents = error, iter(())
            is_void = self._loads != buffer.loads  # what was cached; see `_drop_void`
            self._drop_void()
            tables = buffer.tables
            outcomes: list[Outcome] = []
            for ask, entry in zip(asks, entries, strict=True):
                page = ask.page
                if not entry and page not in unknown:
                    outcomes.append(None)
                    continue
                current = next(currents, None) if ask.is_visit else tables.current.visits.get(page, 0)
                if current is None:
                    outcomes.append(refusal)
                    continue
                if is_void:
                    entry = None  # noqa: PLW2901 - what was cached when it was looked up is void
                after = entry.segment if entry else buffer.included_to
                pending = current + tables.pending_sealed(page, after) if tables.sealed else current
                if entry:
                    via = self._post_via(page) if ask.is_visit else self._read_via(page, pending, loaded)
                    outcomes.append(Answer(entry.stored + pending, via))
                elif ask.is_visit:
                    outcomes.append(Accepted(pending, self._post_via(page)))
                elif page in unknown:
                    outcomes.append(CountUnknownError(f"the stored count of this page cannot be read: {unknown[page]}"))
                else:
                    outcomes.append(None)
            return outcomes

    def _loaded(self, page: str, loaded: Loaded) -> Known | None:
        """Return what is known of a page that was just loaded, or could not be. The lock is held."""
        known: Known | None = self.cache.peek(page)
        if known is None and page in loaded.read:
            # The cache is too small for it. Without it nobody has raised what was read since.
            read = loaded.read[page]
            known = read.known if read.version == self._version() else None
        return known

    def _version(self) -> tuple[int, int]:
        """Return what changes whenever visits leave the tables. The lock is held."""
        return self.buffer.loads, self.buffer.tables.version

    def _read_via(self, page: str, pending: int, loaded: Loaded) -> str:
        """Return what a count is said to come from."""
        if loaded is _NOTHING:
            return IN_MEMORY
        return self._pending_via if pending and self._pending_via else self._stored_via(page)

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

    def load(self, pages: Iterable[str], loaded: Loaded) -> None:
        """Read the pages, with one call for each shard, into the cache and into `loaded`.

        If a shard cannot be asked, a last known count is good for a moment more, so that the next visitors of the
        page do not ask again, each in turn.
        """
        by_owner: dict[str, dict[str, None]] = {}
        for page in pages:
            by_owner.setdefault(self.store.owner(page), {})[page] = None
        for group in by_owner.values():
            for page, flight in self._reads.do_all(group, self._read).items():
                error = flight.exception()
                if error is None:
                    loaded.read[page] = flight.result()
                elif isinstance(error, StoreError):
                    log.debug("the stored part of %s is not known: %s", page, error)
                    loaded.errors[page] = error
                    self._keep_last_known(page)
                else:
                    raise error

    def _keep_last_known(self, page: str) -> None:
        with self.buffer.lock:
            known: Known | None = self.cache.peek(page)
            if known is not None:
                self.cache.set(page, known, timeout=_LAST_KNOWN_SECONDS)

    def _read(self, pages: Sequence[str]) -> dict[str, Read]:
        """Return what is known of the pages; read what is not fresh. Raises StoreError."""
        found: dict[str, Read] = {}
        for _ in range(_READ_TRIES):
            with self.buffer.lock:
                self.buffer.catch_up()
                self._drop_void()
                state, version = self.buffer.state, self._version()
                for page in pages:
                    known = None if page in found else self._known(page)
                    if known is not None:
                        found[page] = Read(known, version)
                pages = [page for page in pages if page not in found]
            if not pages:
                return found
            stored = self.store.read(self.buffer.writer, pages)
            with self.buffer.lock:
                if state is not self.buffer.state or version[0] != self.buffer.loads:
                    continue  # nobody could tell a shard that lost something from a read before its flush
                for page, one in zip(pages, stored, strict=True):
                    known = self._take_over(page, one)
                    if known is not None:
                        found[page] = Read(known, self._version())
        raise StoreError(self._stored_via(pages[0]), "a flush was confirmed during every read")

    def _drop_void(self) -> None:
        """Drop the cache if the buffer has started anew since; see `WriteBuffer.loads`. The lock is held."""
        if self._loads != self.buffer.loads:
            self._loads = self.buffer.loads
            self.cache.clear()

    def _take_over(self, page: str, stored: Stored) -> Known | None:
        """Put a read into the cache and return what is now known; None if it must be made again."""
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
                    return None  # the flush has made the shard whole, and forgotten a segment
                known = Known(max(segment, self.buffer.included_to), visits)
        else:
            # Nothing between the watermark and `included_to` was for this partition. Two reads of one page may
            # overtake each other; counts only grow, so the larger is the later.
            known = max(Known(max(segment, self.buffer.included_to), stored.visits), known or Known(0, 0))
        self.cache.set(page, known)
        return known
