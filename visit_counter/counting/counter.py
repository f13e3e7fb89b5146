"""The visit counter: count = stored + pending, for the profiles that write through the journal.

The stored part is the count that this host knows (`counting.stored`): from the cache, or read from the owning shard.
The pending visits are added after that, so an answer from the cache also shows this host's newest visits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from visit_counter.counting.stored import Loaded, StoredCounts
from visit_counter.errors import CountUnknownError, JournalError, UncertainError, VisitCounterError
from visit_counter.model.answers import Accepted, Answer, Ask, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from visit_counter.counting.cache import LocalCache
    from visit_counter.errors import StoreError
    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.model.visits import Visit
    from visit_counter.shards.contract import Store

IN_MEMORY = "in_memory"


class VisitCounter(ABC):
    """What the routes, the commands and the worker's loop call."""

    @abstractmethod
    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """Count the visits and read the counts; return the outcome of each ask, in order.

        Without `wait`, the call waits for the journal and for nothing else. An outcome None then means that the ask has
        to wait for a shard, and that no visit was recorded for it: ask again with `wait`, from a thread that may wait.
        With `wait` no outcome is None.
        """

    @abstractmethod
    def owner(self, page: str) -> str:
        """Return the name of the store that keeps a page. Requests that wait for one store wait apart from others."""

    @abstractmethod
    def record_all(self, visits: Sequence[Visit]) -> int:
        """Count all these visits and return their number. With a journal, this waits for no shard.

        Raises JournalError or StoreError if surely no visit is counted, and UncertainError if some may be.
        """

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
    assert outcome is not None  # noqa: S101 - `answer` was called with `wait`
    return outcome


_NOTHING = Loaded({}, {})
_CUT = JournalError("the disk took a part of what was written, and not this visit")


class BufferedCounter(VisitCounter):
    """Counts through the write buffer. `post_via(page)` and `stored_via(page)` give the `served_via` of answers."""

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
        self.buffer = buffer
        self.stored = StoredCounts(buffer, store, cache)
        self._fresh, self._known = cache.get, self.stored.kept.known  # looked up once, not for every visit
        self._post_via, self._stored_via, self._pending_via = post_via, stored_via, pending_via

    def owner(self, page: str) -> str:
        """Return the shard that has a page."""
        return self.stored.store.owner(page)

    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """See VisitCounter.answer; all visits go into the journal with one append."""
        outcomes = self._answer(asks, _NOTHING)
        if not wait:
            return outcomes
        loaded = Loaded({}, {})
        while None in outcomes:
            waiting = [ask for ask, outcome in zip(asks, outcomes, strict=True) if outcome is None]
            self.stored.load([ask.page for ask in waiting], loaded)
            found = iter(self._answer(waiting, loaded))
            outcomes = [next(found) if outcome is None else outcome for outcome in outcomes]
        return outcomes

    def record_all(self, visits: Sequence[Visit]) -> int:
        """See VisitCounter.record_all; all with one append."""
        with self.buffer.lock:
            self.buffer.catch_up()
            counted = len(self.buffer.append(visits))
        if counted < len(visits):
            raise UncertainError(f"the disk is full: the first {counted} of {len(visits)} entries are counted")
        return sum(number for _, number in visits)

    def _answer(self, asks: Sequence[Ask], loaded: Loaded) -> list[Outcome]:
        """Answer the asks whose page's count is known or could not be read; the outcome of the others is None."""
        buffer = self.buffer
        with buffer.lock:
            # This comes before the entries are read: it moves the visits of segments that were flushed meanwhile from
            # the tables into the entries.
            buffer.catch_up()
            loads, post_via = buffer.loads, self._post_via
            entries = self._look_up(asks, loaded)
            unknown = loaded.errors
            run = [
                ask.visit
                for ask, entry in zip(asks, entries, strict=True)
                if ask.is_visit and (entry or ask.page in unknown)
            ]
            refusal: VisitCounterError = _CUT
            try:
                currents = iter(buffer.append(run) if run else ())
            except (JournalError, UncertainError) as error:
                refusal, currents = error, iter(())
            if buffer.absent:
                return [self._refuse(ask) for ask in asks]
            # The journal was read anew during the append, so the cached counts no longer apply.
            cache_cleared = loads != buffer.loads
            tables = buffer.tables
            outcomes: list[Outcome] = []
            for ask, entry in zip(asks, entries, strict=True):
                page = ask.page
                if not entry and page not in unknown:
                    outcomes.append(None)
                    continue
                pending = next(currents, None) if ask.is_visit else tables.current.visits.get(page, 0)
                if pending is None:
                    outcomes.append(refusal)
                    continue
                if cache_cleared:
                    entry = None  # noqa: PLW2901 - the entry is from the cache that was cleared since
                segment, stored = entry[1:3] if entry else (buffer.included_to, 0)
                if tables.sealed:
                    pending += tables.pending_sealed(page, segment)
                if entry:
                    if ask.is_visit:
                        via = post_via(page)
                    else:
                        via = IN_MEMORY if loaded is _NOTHING else self._read_via(page, pending)
                    outcomes.append(Answer(stored + pending, via))
                else:
                    outcomes.append(self._without_stored(ask, pending, unknown))
            return outcomes

    def _look_up(self, asks: Sequence[Ask], loaded: Loaded) -> list[tuple[int, ...] | None]:
        """Return for each ask a tuple that begins as `Known` does (an entry of the cache, or a Known), or None."""
        if loaded is _NOTHING:
            fresh, known = self._fresh, self._known
            return [fresh(ask.page) or known(ask.page) for ask in asks]
        return [self.stored.loaded(ask.page, loaded) for ask in asks]

    def _refuse(self, ask: Ask) -> Outcome:
        """Return the outcome of an ask while this process lacks a segment that other processes may know."""
        return JournalError(self.buffer.halted) if ask.is_visit else CountUnknownError(self.buffer.halted)

    def _without_stored(self, ask: Ask, pending: int, errors: Mapping[str, StoreError]) -> Outcome:
        """Return the outcome of an ask for a page whose stored count is not known."""
        if ask.is_visit:
            return Accepted(pending, self._post_via(ask.page))
        if ask.page in errors:
            return CountUnknownError(f"the stored count of this page cannot be read: {errors[ask.page]}")
        return None

    def _read_via(self, page: str, pending: int) -> str:
        """Return the `served_via` of a count that was read from a shard for this request."""
        return self._pending_via if pending and self._pending_via else self._stored_via(page)

    def tick(self) -> None:
        """Follow the journal; called once a second."""
        self.buffer.tick(self.stored.rebase)
        self.stored.notice_losses()
        self.stored.tell_visited()
