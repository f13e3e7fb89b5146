"""The counter of the profiles without a journal: it sends every visit to the store at once, and nothing is pending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.counting.counter import IN_MEMORY, VisitCounter
from visit_counter.counting.single_flight import SingleFlight
from visit_counter.errors import CountUnknownError, StoreError, StoreUnavailableError, UncertainError, VisitCounterError
from visit_counter.model.answers import Answer, Ask, Outcome
from visit_counter.shards.ring import PARTITIONS, partition_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.counting.cache import LocalCache
    from visit_counter.model.visits import Visit
    from visit_counter.shards.contract import Store


class Said(NamedTuple):
    """The last count that the store gave for a page, and how many visits of its partition were answered by then."""

    visits: int
    number: int


class DirectCounter(VisitCounter):
    """Counts in `store`, which answers name as `via`; reads through `cache` if there is one.

    `waits` says whether the store is asked over a network. If so, only a cached count can be answered without waiting.
    """

    def __init__(self, store: Store, *, via: str, cache: LocalCache | None = None, waits: bool = True) -> None:
        self.store, self.cache = store, cache
        self._via, self._waits = via, waits
        self._lock = threading.Lock()
        self._reads: SingleFlight[int] = SingleFlight()
        # How many visits of a partition's pages this process has answered. A read that began before the last of these
        # visits may lack it. So no later request joins such a read, and its result is not cached.
        self._answered = [0] * PARTITIONS
        # The page of the last visit, if the store answered it with a refusal.
        self._refused_page = ""

    def owner(self, page: str) -> str:
        """Return the store that has a page."""
        return self.store.owner(page)

    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """See VisitCounter.answer."""
        may_ask = wait or not self._waits
        return [self._count_visit(ask) if ask.is_visit and may_ask else self._find(ask, may_ask) for ask in asks]

    def record_all(self, visits: Sequence[Visit]) -> int:
        """See VisitCounter.record_all; one after the other."""
        for index, (page, number) in enumerate(visits):
            outcome = self._count_visit(Ask(True, page, number))
            if isinstance(outcome, VisitCounterError):
                if index == 0:
                    raise outcome
                raise UncertainError(f"the first {index} of {len(visits)} entries are counted; then: {outcome}")
        return sum(number for _, number in visits)

    def refusal(self) -> str | None:
        """Return why the store refused the last visit, if it still would; this asks the store, and counts nothing."""
        page = self._refused_page
        if page:
            try:
                self.store.add(page, 0)
            except StoreError as error:
                return str(error)
            self._refused_page = ""
        return None

    def _count_visit(self, ask: Ask) -> Outcome:
        page, at = ask.page, partition_of(ask.page)
        began = self._answered[at]
        try:
            count = self.store.add(page, ask.visits)
        except StoreUnavailableError as error:
            return UncertainError(f"{error}; whether the visit was counted is unknown")
        except StoreError as error:
            self._refused_page = page
            return error
        with self._lock:
            self._refused_page = ""
            self._answered[at] += 1
            if self.cache is not None:
                said, other = Said(count, self._answered[at]), self.cache.peek(page)
                # Of two visits at the same time, the one with the lower count may arrive here last: the higher count is
                # kept. A count from before this visit began is not compared: the shard may have lost data since.
                self.cache.set(page, other if other and other.number > began and other.visits > count else said)
        return Answer(count, self._via)

    def _find(self, ask: Ask, may_ask: bool) -> Outcome:
        """Answer from the cache, or from the store if `may_ask`; None for a visit, and if the store must be asked."""
        page = ask.page
        cached = None if self.cache is None or ask.is_visit else self.cache.get(page)
        if cached is not None:
            return Answer(cached.visits, IN_MEMORY)
        if not may_ask:
            return None
        answered = self._answered[partition_of(page)]
        try:
            return Answer(self._reads.do((page, answered), lambda: self._read(page, answered)), self._via)
        except StoreError as error:
            known = None if self.cache is None else self.cache.peek(page)
            if known is None:
                return CountUnknownError(f"the count of this page cannot be read now: {error}")
            return Answer(known.visits, self._via)

    def _read(self, page: str, answered: int) -> int:
        if self.cache is not None and (cached := self.cache.get(page)) is not None:
            return int(cached.visits)  # another read has filled the cache since the caller read it
        [stored] = self.store.read("", [page])
        with self._lock:
            if self.cache is not None and self._answered[partition_of(page)] == answered:
                self.cache.set(page, Said(stored.visits, answered))
        return stored.visits
