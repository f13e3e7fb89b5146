"""The stored counts in this process's cache, and whether each is fresh enough for an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.counting.freshness import Freshness
from visit_counter.journal.records import Known

if TYPE_CHECKING:
    from visit_counter.counting.cache import LocalCache
    from visit_counter.shards.contract import Store

# How long the last known count is used once more when its shard cannot be read.
LAST_KNOWN_SECONDS = 1.0
# For a count to compare reads with, which is too old for an answer.
NOT_FRESH = -1.0

# The cache's entry for a page: the three numbers of `Known`, and the number of its read (see `counting.freshness`).
Kept = tuple[int, int, int, int]


class KeptCounts:
    """The counts in the cache. All methods expect the buffer's lock to be held."""

    def __init__(self, cache: LocalCache, store: Store) -> None:
        self.cache, self._store = cache, store
        self.freshness = Freshness(cache.ttl_seconds, cache.clock)

    def known(self, page: str) -> Known | None:
        """Return a page's count if it is fresh, or the last known one while the page's shard is known to be down.

        No request waits for a shard that is known to be down: requests for pages of other shards would wait behind it
        for a thread. The service's probes notice when the shard is back.
        """
        kept: Kept | None = self.cache.get(page) or self._refreshed(page)
        if kept is not None:
            return Known._make(kept[:3])
        return self.keep_last_known(page) if self._store.is_down(page) else None

    def _refreshed(self, page: str) -> Kept | None:
        """Return the entry of a page whose time in the cache is over, if a later look has found it fresh."""
        kept: Kept | None = self.cache.peek(page)
        if kept is None:
            return None
        seconds = self.freshness.until(kept[3]) - self.cache.clock()
        if seconds <= 0:
            return None
        self.cache.set(page, kept, timeout=seconds)
        return kept

    def keep_last_known(self, page: str) -> Known | None:
        """Return the last known count of a page, and use it for a moment more."""
        kept: Kept | None = self.cache.peek(page)
        if kept is None:
            return None
        # This also keeps the page in the cache for as long as visitors ask for it.
        self.cache.set(page, kept, timeout=LAST_KNOWN_SECONDS)
        return Known._make(kept[:3])

    def peek(self, page: str) -> Known | None:
        """Return the page's count in the cache, fresh or not."""
        kept: Kept | None = self.cache.peek(page)
        return None if kept is None else Known._make(kept[:3])

    def amend(self, page: str, known: Known) -> None:
        """Replace the count of a page that is in the cache; the entry expires when it would have before."""
        kept: Kept = self.cache.peek(page)
        self.cache.amend(page, (*known, kept[3]))

    def keep(self, page: str, known: Known, number: int, seconds: float | None = None) -> None:
        """Put a page's count into the cache; it is fresh for the cache time, or for so many seconds.

        The entry is a plain tuple and not a `Known`: the garbage collector stops tracking a plain tuple of numbers, but
        never an instance of a class. With 100,000 pages, the entries would be most of the objects that it visits.
        """
        self.cache.set(page, (*known, number), timeout=seconds)

    def forget(self, page: str) -> None:
        """Drop the page's entry: the next read of the page is believed whatever it finds."""
        self.cache.delete(page)

    def expire(self) -> None:
        """Let every entry expire, so that every page is read anew."""
        self.cache.expire()
        self.freshness.clear()

    def clear(self) -> None:
        """Drop all entries."""
        self.cache.clear()
        self.freshness.clear()
