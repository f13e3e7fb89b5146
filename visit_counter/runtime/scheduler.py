"""Background work of one process: a table of jobs, run by APScheduler in a thread of its own.

Every process follows the journal and syncs it. One process of the host, the one that holds `leader.lock`, also
flushes; the kernel releases the lock when that process ends, however it ends, and another takes over at its next turn.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from visit_counter.private_files import open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

_JUMP_SECONDS = 1.0
_LONGEST_SLEEP_SECONDS = 1.0


class Job(NamedTuple):
    """What, which function, how often."""

    name: str
    function: Callable[[], None]
    every_seconds: float


class SteadyJobStore(MemoryJobStore):  # type: ignore[misc]  # APScheduler has no types
    """Keeps the table in memory, and makes every job due when the wall clock has jumped.

    APScheduler plans by the wall clock: set back an hour, it would rest for an hour. It asks its job store at each
    waking up which jobs are due, and then when to wake up next. So this one looks at the monotonic clock too, at least
    once a second, and has every job run at once when the two disagree.
    """

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()

    def get_due_jobs(self, now: datetime) -> list[Any]:
        """Return the jobs that are due: after a jump all of them."""
        before, self._ahead = self._ahead, self._wall() - self._monotonic()
        if abs(self._ahead - before) > _JUMP_SECONDS:
            log.warning("the clock jumped by %+.0f s; all jobs run now", self._ahead - before)
            for job in self.get_all_jobs():
                job.modify(next_run_time=now)
        return super().get_due_jobs(now)  # type: ignore[no-any-return]  # APScheduler has no types

    def get_next_run_time(self) -> datetime | None:
        """Return when to ask again: when the next job is due, or in a second, to look at the clocks."""
        due: datetime | None = super().get_next_run_time()
        soon = datetime.now().astimezone() + timedelta(seconds=_LONGEST_SLEEP_SECONDS)
        return due and min(due, soon)


def make_scheduler(
    jobs: Iterable[Job], *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> BackgroundScheduler:
    """Return a scheduler of these jobs that is not started yet. `wall` and `monotonic` are clocks, in seconds."""
    scheduler = BackgroundScheduler(
        daemon=True,
        jobstores={"default": SteadyJobStore(wall, monotonic)},
        # A late run is run, once, however late; two runs of a job never overlap.
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    for job in jobs:
        scheduler.add_job(
            _logged(job),
            "interval",
            seconds=job.every_seconds,
            id=job.name,
            name=job.name,
            next_run_time=datetime.now().astimezone() + timedelta(seconds=job.every_seconds),
        )
    return scheduler


def _logged(job: Job) -> Callable[[], None]:
    """Return the job's function so that a failure is one line in the log, and the next run comes as planned."""

    def run() -> None:
        try:
            job.function()
        except Exception as error:  # whatever it was, the job must run again
            log.error(
                "%s failed: %s: %s", job.name, type(error).__name__, error, exc_info=log.isEnabledFor(logging.DEBUG)
            )

    return run


class Leader:
    """Whether this process is the one of its host that flushes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        """Become the leader if nobody else is; tell whether this process is it now."""
        if self._descriptor >= 0:
            return True
        descriptor = open_private(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let another process become the leader."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
