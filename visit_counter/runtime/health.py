"""What a process reports about itself: data, which `web.health` puts into HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from visit_counter.journal.checkpoint import Checkpoint

# A flush is overdue when none has been complete for so many intervals.
OVERDUE_INTERVALS = 3


@dataclass(frozen=True)
class Journaled:
    """What is reported where there is a journal. `damage` holds the notes that nobody has acknowledged, oldest first.

    `last_flush_age_seconds`: how long ago a flush last brought everything to every shard; None before the first.
    """

    pending_visits: int
    last_flush_age_seconds: int | None
    damage: list[str]


@dataclass(frozen=True)
class Health:
    """What happened, in plain words: `refusal` says why the last visits could not be accepted, `complaints` the rest.

    `shards` says for each name whether the shard answers this process.
    """

    profile: str
    shards: Mapping[str, bool]
    refusal: str | None = None
    complaints: tuple[str, ...] = ()
    journaled: Journaled | None = None

    @property
    def status(self) -> str:
        """`unhealthy`: visits are refused; `degraded`: they are accepted, and something is wrong; else `healthy`."""
        return "unhealthy" if self.refusal else "degraded" if self.complaints else "healthy"

    @property
    def reasons(self) -> list[str]:
        """Every cause, the gravest first."""
        return [*([self.refusal] if self.refusal else ()), *self.complaints]


class FlushWatch:
    """Whether complete flushes go on. It measures with this process's own clock, since the wall clock may be set.

    `interval_seconds`: how often a flush is due. At its start a process counts as having just seen a complete flush.
    """

    def __init__(self, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = interval_seconds, clock
        self._seen = 0.0
        self._since = clock()

    def observe(self, state: Checkpoint) -> None:
        """Note whether a flush has been complete since the last call; called once a second."""
        if state.complete_at != self._seen:
            self._seen, self._since = state.complete_at, self._clock()

    def complaint(self) -> str | None:
        """Return a sentence if a flush is overdue, else None."""
        seconds = self._clock() - self._since
        if seconds <= OVERDUE_INTERVALS * self._interval:
            return None
        return f"no flush has reached every shard for {seconds:.0f} s; one is due every {self._interval:g} s"


def flush_complaints(state: Checkpoint, watch: FlushWatch) -> list[str]:
    """Return what is wrong with the flushes: why the last one failed, replicas that are away, one that is overdue."""
    watch.observe(state)
    complaints = []
    if state.last_flush is not None and state.last_flush.error:
        reasons = [*state.trouble.values()] or [state.last_flush.error]
        complaints += [f"the last flush failed: {reason}" for reason in reasons]
    complaints += [replica_complaint(*found) for found in state.replicas_away()]
    if overdue := watch.complaint():
        complaints.append(overdue)
    return complaints


def replica_complaint(shard: str, replica: str, away_since: float) -> str:
    """Return the sentence that flushed visits are kept for a replica, which may be promoted without them."""
    seconds = max(0, round(time.time() - away_since))
    return f"{shard}: its replica {replica} has been away for {seconds} s; what is flushed is kept for it"
