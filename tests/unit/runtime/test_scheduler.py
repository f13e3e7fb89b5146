"""The background jobs of a process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from visit_counter.runtime.scheduler import Job, Leader, make_scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from apscheduler.schedulers.background import BackgroundScheduler

DEADLINE_SECONDS = 20


class Time:
    """A wall clock that a test can set; the monotonic one goes on as it is."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return self.ahead

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def started() -> Iterator[list[BackgroundScheduler]]:
    schedulers: list[BackgroundScheduler] = []
    yield schedulers
    for scheduler in schedulers:
        scheduler.shutdown(wait=True)


def test_a_job_runs_again_and_again(started: list[BackgroundScheduler]) -> None:
    runs = threading.Semaphore(0)
    started.append(make_scheduler([Job("job", runs.release, 0.01)]))
    started[0].start()
    for _ in range(3):
        assert runs.acquire(timeout=DEADLINE_SECONDS)


def test_a_job_that_fails_is_one_line_in_the_log_and_runs_again(
    started: list[BackgroundScheduler], caplog: pytest.LogCaptureFixture
) -> None:
    runs = threading.Semaphore(0)

    def fail() -> None:
        runs.release()
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.INFO, "visit_counter"):
        started.append(make_scheduler([Job("flush", fail, 0.01)]))
        started[0].start()
        for _ in range(3):
            assert runs.acquire(timeout=DEADLINE_SECONDS)
    assert "flush failed: OSError: [Errno 28] No space left on device" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("jump_seconds", [3600, -3600, 86400, -86400])
def test_after_the_wall_clock_jumped_every_job_runs_at_once(
    started: list[BackgroundScheduler], jump_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    time = Time()
    ran = threading.Event()
    started.append(make_scheduler([Job("flush", ran.set, 3000.0)], wall=time.wall, monotonic=time.monotonic))
    started[0].start()
    time.ahead += jump_seconds
    started[0].wakeup()
    assert ran.wait(DEADLINE_SECONDS)
    assert "the clock jumped" in caplog.text


def test_the_clocks_are_compared_at_least_once_a_second(started: list[BackgroundScheduler]) -> None:
    time = Time()
    ran = threading.Event()
    started.append(make_scheduler([Job("flush", ran.set, 3000.0)], wall=time.wall, monotonic=time.monotonic))
    started[0].start()
    time.ahead -= 3600
    assert ran.wait(DEADLINE_SECONDS)


def test_without_a_jump_a_job_waits_for_its_time(started: list[BackgroundScheduler]) -> None:
    soon = threading.Event()
    later = threading.Event()
    started.append(make_scheduler([Job("later", later.set, 3000.0), Job("soon", soon.set, 0.01)]))
    started[0].start()
    assert soon.wait(DEADLINE_SECONDS)
    assert not later.is_set()


def test_a_late_run_is_run_once_however_late(started: list[BackgroundScheduler]) -> None:
    scheduler = make_scheduler([Job("job", lambda: None, 1.0)])
    started.append(scheduler)
    scheduler.start(paused=True)
    [job] = scheduler.get_jobs()
    assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (None, True, 1)


def test_one_process_leads_until_it_lets_go(tmp_path: Path) -> None:
    first, second = Leader(tmp_path / "leader.lock"), Leader(tmp_path / "leader.lock")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
