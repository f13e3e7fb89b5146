"""LocalCache: a flask-caching backend in this process, for counts that were read from shards.

Unlike the stock SimpleCache it keeps a value after its time is over, until room is needed: `peek` returns it, which
is how a page of a shard that is down still has a last known count. Time is monotonic, so that setting the clock of
the machine neither keeps values nor drops them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import timedelta
from math import inf
from threading import RLock
from typing import TYPE_CHECKING, Any

from flask_caching.backends.base import BaseCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask


class LocalCache(BaseCache):  # type: ignore[misc]  # flask-caching gives mypy no types
    """At most `threshold` entries; the one set longest ago makes room.

    A timeout of 0 means that a value's time never ends, as in flask-caching; `ttl_seconds` of 0 that none is fresh.
    Values are kept as they are, not as copies: do not change one after `set`. flask-caching rounds
    CACHE_DEFAULT_TIMEOUT up to whole seconds; `ttl_seconds` (in CACHE_OPTIONS), and a timeout given to `set`,
    are exact.

    Writers hold a lock. Readers do not: they look up one key by one call of `dict.get`, which is atomic (by the
    interpreter's lock, or by the dict's own in a free-threaded build), and what they find is a tuple that is never
    changed, only replaced.
    """

    def __init__(
        self,
        threshold: int = 500,
        default_timeout: int = 300,
        ignore_delete_many_errors: bool = False,
        ttl_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(default_timeout, ignore_delete_many_errors)
        if threshold < 1:
            raise ValueError(f"threshold is {threshold}; a cache holds at least 1 entry")
        self._threshold = threshold
        self.ttl_seconds: float = (self.default_timeout or inf) if ttl_seconds is None else ttl_seconds
        self.clock = clock
        # key -> (when its time is over, value), in the order in which they were set. A plain dict keeps that order,
        # too, but to find its first entry it walks over the places of all entries that were deleted before.
        self._entries: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._lock = RLock()

    @classmethod
    def factory(cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> LocalCache:  # noqa: ARG003 - the signature is flask-caching's
        """Make the cache that an application's configuration asks for."""
        return cls(*args, **{"threshold": config["CACHE_THRESHOLD"], **kwargs})

    def get(self, key: str) -> Any:
        """Return the value, or None if there is none or its time is over."""
        entry = self._entries.get(key)
        return entry[1] if entry is not None and entry[0] > self.clock() else None

    def peek(self, key: str) -> Any:
        """Return the value even if its time is over, or None if the cache has none for this key."""
        entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def has(self, key: str) -> bool:
        """Return whether there is a value whose time is not over."""
        entry = self._entries.get(key)
        return entry is not None and entry[0] > self.clock()

    def set(self, key: str, value: Any, timeout: float | timedelta | None = None) -> bool:
        """Keep the value for so many seconds."""
        seconds = self.ttl_seconds if timeout is None else (_seconds(timeout) or inf)
        entry = (self.clock() + seconds, value)
        entries = self._entries
        with self._lock:
            entries[key] = entry
            entries.move_to_end(key)
            if len(entries) > self._threshold:
                entries.popitem(last=False)
        return True

    def amend(self, key: str, value: Any) -> None:
        """Replace a value that is in the cache; the time of the new one ends when that of the old one would have."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries[key] = (entry[0], value)

    def expire(self) -> None:
        """End the time of all values."""
        with self._lock:
            for key, (_, value) in self._entries.items():
                self._entries[key] = (0.0, value)

    def add(self, key: str, value: Any, timeout: float | timedelta | None = None) -> bool:
        """Keep the value unless there is one; return whether it was kept."""
        with self._lock:
            return not self.has(key) and self.set(key, value, timeout)

    def delete(self, key: str) -> bool:
        """Forget a value; return whether there was one, whether or not its time was over."""
        with self._lock:
            return self._entries.pop(key, None) is not None

    def clear(self) -> bool:
        """Forget all values."""
        with self._lock:
            self._entries.clear()
        return True


def _seconds(timeout: float | timedelta) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
