"""The counter of the first three stages: every visit goes to the store at once; no journal, nothing pending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from visit_counter.answers import Answer, Ask
from visit_counter.counter import IN_MEMORY
from visit_counter.errors import CountUnknownError, StoreError
from visit_counter.ring import PARTITIONS, partition_of
from visit_counter.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.cache import LocalCache
    from visit_counter.stores.base import Store


class DirectCounter:
    """Counts in `store`, which answers name as `via`; reads through `cache` if there is one.

    `waits` tells whether the store is asked over a network: if so, `answer_ready` answers from the cache only.
    """

    def __init__(self, store: Store, *, via: str, cache: LocalCache | None = None, waits: bool = True) -> None:
        self.store, self.cache = store, cache
        self._via, self._waits = via, waits
        self._lock = threading.Lock()
        self._reads: SingleFlight[int] = SingleFlight()
        # How many visits of a partition's pages this process has answered. A read that began before the last of them
        # may be too old for that visitor: nobody joins it any more, and it is not cached.
        self._answered = [0] * PARTITIONS

    def record(self, page: str, visits: int = 1) -> Answer:
        """Count visits of a page. Raises StoreError; after StoreUnavailableError they may have been counted."""
        count = self.store.add(page, visits)
        with self._lock:
            self._answered[partition_of(page)] += 1
            if self.cache is not None:
                # Of two visits at once the one with the lower count may come here last.
                self.cache.set(page, max(count, self.cache.peek(page) or 0))
        return Answer(count, self._via)

    def count(self, page: str) -> Answer:
        """Read the count of a page. Raises CountUnknownError."""
        if self.cache is not None and (cached := self.cache.get(page)) is not None:
            return Answer(cached, IN_MEMORY)
        answered = self._answered[partition_of(page)]
        try:
            return Answer(self._reads.do((page, answered), lambda: self._read(page, answered)), self._via)
        except StoreError as error:
            known = None if self.cache is None else self.cache.peek(page)
            if known is None:
                raise CountUnknownError(f"the count of this page cannot be read now: {error}") from None
            return Answer(known, self._via)

    def answer_ready(self, requests: Sequence[Ask]) -> list[Answer | None]:
        """See VisitCounter.answer_ready."""
        if not self._waits:
            return [self.record(ask.page) if ask.is_visit else self.count(ask.page) for ask in requests]
        return [None if ask.is_visit else self._cached(ask.page) for ask in requests]

    def _cached(self, page: str) -> Answer | None:
        cached = None if self.cache is None else self.cache.get(page)
        return None if cached is None else Answer(cached, IN_MEMORY)

    def _read(self, page: str, answered: int) -> int:
        if self.cache is not None and (cached := self.cache.get(page)) is not None:
            return int(cached)  # from a read that came back since the caller looked
        [stored] = self.store.read("", [page])
        with self._lock:
            if self.cache is not None and self._answered[partition_of(page)] == answered:
                self.cache.set(page, stored.visits)
        return stored.visits
