"""A breaker for one shard: while the shard is down, nobody waits for it but one probe now and then. Pure.

    closed --failure--> open --the time of the next probe--> half-open --success--> closed
                          ^                                      |
                          '---------------failure----------------'

The idea is the circuit breaker of Nygard, "Release It!" (2007). One failure opens it, because a failure here is no
answer at all, and each further request would wait for its whole time-out and find out the same.
"""

from __future__ import annotations

import random
import time
from threading import Lock
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Whether a shard may be asked. Safe to use from several threads.

    Probes start `probe_seconds` apart and, while they fail, double up to `max_probe_seconds`. Each wait is drawn
    from half to one and a half of that, so that the workers of many hosts do not probe a returning shard at once.
    """

    def __init__(
        self,
        probe_seconds: float = 0.5,
        max_probe_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._probe_seconds = probe_seconds
        self._max_probe_seconds = max_probe_seconds
        self._clock = clock
        self._uniform = uniform
        self._lock = Lock()
        self._wait_seconds = probe_seconds
        self._next_probe = 0.0
        self._since = clock()
        self._state: State = "closed"

    @property
    def state(self) -> State:
        """Return `closed` (up), `open` (down) or `half-open` (down, and a probe is out)."""
        return self._state

    @property
    def since(self) -> float:
        """Return for how many seconds the shard has been up or down."""
        return self._clock() - self._since

    def allows(self) -> bool:
        """Tell whether to ask the shard now; a caller that may ask reports `success` or `failure`."""
        # Read without the lock, on every request of a healthy shard: one word, changed by one assignment.
        if self.state == "closed":
            return True
        with self._lock:
            if self._state == "closed":
                return True
            if self._clock() < self._next_probe:
                return False
            # The time of the next probe is set here: so a probe that never reports only delays the next one.
            self._set_next_probe()
            self._state = "half-open"
            return True

    def success(self) -> float | None:
        """Say that the shard answered; return for how many seconds it was down if that ends its outage, else None."""
        if self.state == "closed":
            return None
        with self._lock:
            if self._state == "closed":
                return None
            down_seconds = self._clock() - self._since
            self._state = "closed"
            self._since = self._clock()
            self._wait_seconds = self._probe_seconds
            return down_seconds

    def failure(self) -> bool:
        """Say that the shard did not answer; tell whether that begins an outage."""
        with self._lock:
            begins = self._state == "closed"
            if begins:
                self._since = self._clock()
                self._set_next_probe()
            elif self._state == "half-open":
                self._wait_seconds = min(self._wait_seconds * 2, self._max_probe_seconds)
                self._set_next_probe()
            # Already open: requests that were under way when it opened fail one by one, and tell nothing new.
            self._state = "open"
            return begins

    def _set_next_probe(self) -> None:
        self._next_probe = self._clock() + self._wait_seconds * self._uniform(0.5, 1.5)
