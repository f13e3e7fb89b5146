"""What is written into the log, and how often."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from visit_counter import logs

LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[(\w+)\] (.*)")


class Kept(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Minutes:
    """A clock that only the test moves, and what is to be done a minute later."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: list[Callable[[], None]] = []

    def do_later(self, function: Callable[[], None]) -> None:
        self.later.append(function)

    def pass_one(self) -> None:
        self.now += logs.FLOOD_SECONDS
        later, self.later = self.later, []
        for function in later:
            function()


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    logger = logging.getLogger("test_logs")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    for one in list(logger.filters):
        logger.removeFilter(one)


def test_a_flood_is_one_line_and_then_a_count_each_minute(kept: Kept) -> None:
    minutes = Minutes()
    logger = logging.getLogger("test_logs")
    logger.addFilter(logs.Throttle(lambda: minutes.now, minutes.do_later))
    for number in range(100):
        logger.warning(f"Invalid request from ip=127.0.0.1: {number}")  # noqa: G004 - as gunicorn does
        logger.warning("something else")
    assert kept.lines.count("something else") == 100
    assert [line for line in kept.lines if "else" not in line] == ["Invalid request from ip=127.0.0.1: 0"]
    kept.lines.clear()
    minutes.pass_one()
    assert kept.lines == ["99 more in the last minute like: Invalid request from ip=127.0.0.1: 1"]
    logger.warning("Invalid request from ip=127.0.0.1: again")
    minutes.pass_one()
    assert kept.lines[1:] == ["1 more in the last minute like: Invalid request from ip=127.0.0.1: again"]
    minutes.pass_one()
    logger.warning("Invalid request from ip=127.0.0.1: at last")
    assert kept.lines[2:] == ["Invalid request from ip=127.0.0.1: at last"]


def test_a_warning_that_another_process_has_just_written_is_not_written_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("test_logs")
    logger.addFilter(logs.OncePerHost())
    logger.setLevel(logging.INFO)
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        logger.info("a flush")
        logger.warning("shard a is down")
        logger.warning("worker %d is odd", process)
    assert kept.lines == ["a flush", "shard a is down", "worker 1 is odd", "a flush", "worker 2 is odd"]
    monkeypatch.setattr(logs, "ONCE_SECONDS", 0.0)
    logger.warning("shard a is down")
    logger.warning("shard a is down")
    assert kept.lines[5:] == ["shard a is down"] * 2


def test_an_outage_that_several_processes_notice_is_a_line_when_it_begins_and_one_when_it_ends(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("test_logs")
    logger.addFilter(logs.OncePerHost())
    monkeypatch.setattr(logs, "ONCE_SECONDS", 0.0)  # the time for other warnings is over
    for outage in ("first", "second"):
        for process in (1, 2):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            for shard in ("shard a", "shard b"):
                extra = logs.state_of(shard, "down")
                logger.warning("down, %s, says %d, of %s", outage, process, shard, extra=extra)
        for process in (2, 1):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            for shard in ("shard a", "shard b"):
                extra = logs.state_of(shard, "up")
                logger.warning("up, %s, says %d, of %s", outage, process, shard, extra=extra)
    assert kept.lines == [
        f"{what}, of shard {shard}"
        for outage in ("first", "second")
        for what in (f"down, {outage}, says 1", f"up, {outage}, says 2")
        for shard in "ab"
    ]
    monkeypatch.setattr(logs, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    logger.warning("up again", extra=logs.state_of("shard a", "up"))
    assert kept.lines[-1] == "up again"


def test_every_line_of_a_process_of_its_own_has_time_process_and_level() -> None:
    program = (
        "import logging, warnings; from visit_counter import logs; logs.set_up();"
        "logging.getLogger('visit_counter.x').info('an info'); logging.getLogger('lib').info('no line');"
        "logging.getLogger('lib').error('an error'); warnings.warn('a warning')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    lines = [LINE.fullmatch(line) for line in done.stderr.splitlines() if not line.startswith("  ")]
    found = [(line[1], line[2].split(": ")[-1]) for line in lines if line]
    assert found == [("INFO", "an info"), ("ERROR", "an error"), ("WARNING", "a warning")]
