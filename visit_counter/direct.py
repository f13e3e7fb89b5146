"""The counter of the first three stages: every visit goes to the store at once; no journal, nothing pending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from visit_counter.answers import Answer
from visit_counter.counter import IN_MEMORY
from visit_counter.errors import CountUnknownError, StoreError
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

    def record(self, page: str, visits: int = 1) -> Answer:
        """Count visits of a page. Raises StoreError; after StoreUnavailableError they may have been counted."""
        return Answer(self._remember(page, self.store.add(page, visits)), self._via)

    def count(self, page: str) -> Answer:
        """Read the count of a page. Raises CountUnknownError."""
        if self.cache is not None and (cached := self.cache.get(page)) is not None:
            return Answer(cached, IN_MEMORY)
        try:
            return Answer(self._reads.do(page, lambda: self._read(page)), self._via)
        except StoreError as error:
            known = None if self.cache is None else self.cache.peek(page)
            if known is None:
                raise CountUnknownError(f"the count of this page cannot be read now: {error}") from None
            return Answer(known, self._via)

    def answer_ready(self, requests: Sequence[tuple[bool, str]]) -> list[Answer | None]:
        """See VisitCounter.answer_ready."""
        if not self._waits:
            return [self.record(page) if is_visit else self.count(page) for is_visit, page in requests]
        return [None if is_visit else self._cached(page) for is_visit, page in requests]

    def _cached(self, page: str) -> Answer | None:
        cached = None if self.cache is None else self.cache.get(page)
        return None if cached is None else Answer(cached, IN_MEMORY)

    def _read(self, page: str) -> int:
        [stored] = self.store.read("", [page])
        return self._remember(page, stored.count)

    def _remember(self, page: str, count: int) -> int:
        """Cache a count unless a newer, which is a higher one, came first; return the count that was given.

        A read that began before a visit was counted must not put the older number over the one the visitor got.
        """
        if self.cache is not None:
            with self._lock:
                known = self.cache.get(page)
                self.cache.set(page, count if known is None else max(count, known))
        return count
