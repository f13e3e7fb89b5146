"""A line now and then that tells how many tests are done and the time left: a pytest plugin (tests/conftest.py).

The time left is what the tests that are left took once, by `tests/durations.json`, times the speed of those that are
done. `pytest --keep-durations` writes there what they took this time; a test that it does not know is taken for an
average one.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

DURATIONS = Path(__file__).resolve().parent.parent / "durations.json"
# How often a line is written, in seconds: on a terminal, and where the output is kept.
_TERMINAL_SECONDS, _LOG_SECONDS = 10.0, 30.0


def shown(seconds: float) -> str:
    """Return a time as people say it."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def known_durations() -> dict[str, float]:
    """Return the seconds that a test of each module took once, on average."""
    known: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    return known


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with the modules that took longest at the front; those of a module stay together, in order."""
    known = known_durations()
    seconds: defaultdict[str, float] = defaultdict(float)
    for item in items:
        module = _module_of(item.nodeid)
        seconds[module] += known.get(module, 1.0)
    return sorted(items, key=lambda item: (-seconds[_module_of(item.nodeid)], _module_of(item.nodeid)))


class Forecast:
    """The time that a number of tests will take. `known`: the seconds of one test, by module; `now`: the clock."""

    def __init__(self, known: dict[str, float], modules: list[str], now: float) -> None:
        self._known = known
        self._average = sum(known.values()) / len(known) if known else 1.0
        self._started = now
        self._left = sum(map(self._weight, modules))
        self._done = 0.0
        self.tests, self.finished = len(modules), 0

    def _weight(self, module: str) -> float:
        return self._known.get(module, self._average)

    def finish(self, module: str) -> None:
        """Take note that a test of a module has ended."""
        self.finished += 1
        self._done += self._weight(module)
        self._left -= self._weight(module)

    def seconds_left(self, now: float) -> float:
        """Return the time that is left, in seconds."""
        return max(0.0, self._left * (now - self._started) / self._done) if self._done else 0.0


class Progress:
    """Watches the tests; writes the line, and `tests/durations.json` if it is asked to."""

    def __init__(self, reporter: pytest.TerminalReporter, *, keep: bool) -> None:
        self._reporter, self._keep = reporter, keep
        self._every = _TERMINAL_SECONDS if sys.stdout.isatty() else _LOG_SECONDS
        self._next = time.monotonic() + self._every
        self._forecast: Forecast | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tests: defaultdict[str, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Where several processes run the tests, each has collected all of them."""
        if self._forecast is None:
            self._begin(ids)

    def _begin(self, nodeids: list[str]) -> None:
        if nodeids:
            self._forecast = Forecast(known_durations(), [_module_of(each) for each in nodeids], time.monotonic())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[_module_of(report.nodeid)] += report.duration
        self._tests[_module_of(report.nodeid)].add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._forecast is None:
            return
        self._forecast.finish(_module_of(nodeid))
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every
            left = shown(self._forecast.seconds_left(now))
            self._reporter.write(f"\n{self._forecast.finished} of {self._forecast.tests} tests, about {left} left\n")

    def pytest_sessionfinish(self) -> None:
        if self._keep:
            means = {module: round(self._seconds[module] / len(self._tests[module]), 4) for module in self._seconds}
            kept = known_durations() | means  # of a part of the suite, or a run that was ended, what it has
            DURATIONS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _module_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
