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
from typing import TYPE_CHECKING, NamedTuple

from apscheduler.schedulers.background import BackgroundScheduler

from visit_counter.private_files import open_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

_JUMP_SECONDS = 1.0
_LONGEST_SLEEP_SECONDS = 1.0


class Job(NamedTuple):
    """What, which function, how often."""

    name: str
    function: Callable[[], None]
    every_seconds: float


class Scheduler(BackgroundScheduler):  # type: ignore[misc]  # APScheduler has no types
    """APScheduler that also keeps time when the wall clock jumps.

    APScheduler plans by the wall clock: set back an hour, it would rest for an hour. This one looks at the monotonic
    clock too, at least once a second, and runs every job at once when the two disagree.
    """

    def __init__(
        self,
        jobs: list[Job],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            daemon=True,
            # A late run is run, once, however late; two runs of a job never overlap.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()
        for job in jobs:
            self.add_job(
                _logged(job),
                "interval",
                seconds=job.every_seconds,
                id=job.name,
                name=job.name,
                next_run_time=datetime.now().astimezone() + timedelta(seconds=job.every_seconds),
            )

    def _process_jobs(self) -> float:
        ahead = self._wall() - self._monotonic()
        if abs(ahead - self._ahead) > _JUMP_SECONDS:
            log.warning("the clock jumped by %+.0f s; all jobs run now", ahead - self._ahead)
            for job in self.get_jobs():
                job.modify(next_run_time=datetime.now().astimezone())
        self._ahead = ahead
        wait = super()._process_jobs()
        return _LONGEST_SLEEP_SECONDS if wait is None else min(wait, _LONGEST_SLEEP_SECONDS)


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
