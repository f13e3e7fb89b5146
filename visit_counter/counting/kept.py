"""What this process keeps of stored counts, in its cache, and whether that is fresh enough to answer with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.counting.freshness import Freshness
from visit_counter.journal.records import Known

if TYPE_CHECKING:
    from visit_counter.counting.cache import LocalCache
    from visit_counter.shards.contract import Store

LAST_KNOWN_SECONDS = 1.0
# Known, but not read less than the cache time ago.
NOT_FRESH = -1.0

# What the cache holds of a page: what `Known` says, and the number its read was under (see `counting.freshness`).
Kept = tuple[int, int, int, int]


class KeptCounts:
    """The counts in the cache. All methods expect the buffer's lock to be held."""

    def __init__(self, cache: LocalCache, store: Store) -> None:
        self.cache, self._store = cache, store
        self.freshness = Freshness(cache.ttl_seconds, cache.clock)

    def known(self, page: str) -> Known | None:
        """Return what was read less than the cache time ago, or the last known count while the page's shard is down.

        Nobody waits for a shard that is known to be down, in a thread or in line for one: visits of the other shards'
        pages would wait behind them. The service's probes find out when it is back.
        """
        kept: Kept | None = self.cache.get(page) or self._refreshed(page)
        if kept is not None:
            return Known._make(kept[:3])
        return self.keep_last_known(page) if self._store.is_down(page) else None

    def _refreshed(self, page: str) -> Kept | None:
        """Return what was read of a page if a look at its partition has found it fresh since."""
        kept: Kept | None = self.cache.peek(page)
        if kept is None:
            return None
        seconds = self.freshness.until(kept[3]) - self.cache.clock()
        if seconds <= 0:
            return None
        self.cache.set(page, kept, timeout=seconds)
        return kept

    def keep_last_known(self, page: str) -> Known | None:
        """Return what was known of a page last, and let it be good for a moment more."""
        kept: Kept | None = self.cache.peek(page)
        if kept is None:
            return None
        # Not evicted either, as long as it is asked for.
        self.cache.set(page, kept, timeout=LAST_KNOWN_SECONDS)
        return Known._make(kept[:3])

    def peek(self, page: str) -> Known | None:
        """Return what the cache has of a page, fresh or not."""
        kept: Kept | None = self.cache.peek(page)
        return None if kept is None else Known._make(kept[:3])

    def amend(self, page: str, known: Known) -> None:
        """Put something later in the place of what is known of a page; how fresh it is stays as it was."""
        kept: Kept = self.cache.peek(page)
        self.cache.amend(page, (*known, kept[3]))

    def keep(self, page: str, known: Known, number: int, seconds: float | None = None) -> None:
        """Put what is known of a page into the cache; it stays fresh for the cache time, or for so many seconds.

        As a plain tuple: the garbage collector takes such a one, of numbers only, off its list, and never one of a
        class. With 100,000 pages that is most of what it has to walk over.
        """
        self.cache.set(page, (*known, number), timeout=seconds)

    def forget(self, page: str) -> None:
        """Have the page read anew, with nothing to compare it with."""
        self.cache.delete(page)

    def expire(self) -> None:
        """Have every page read anew."""
        self.cache.expire()
        self.freshness.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.cache.clear()
        self.freshness.clear()
