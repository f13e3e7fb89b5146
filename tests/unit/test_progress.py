"""The time that pytest says is left."""

from __future__ import annotations

import pytest

from tests.conftest import is_worker
from tests.support.progress import Forecast, shown


def test_the_time_left_is_what_the_tests_took_once_times_the_speed_of_those_that_are_done() -> None:
    forecast = Forecast({"quick.py": 1.0, "slow.py": 10.0}, ["quick.py", "quick.py", "slow.py"], now=100.0)
    forecast.finish("quick.py")
    assert forecast.seconds_left(now=102.0) == 22.0
    forecast.finish("quick.py")
    forecast.finish("slow.py")
    assert forecast.seconds_left(now=130.0) == 0.0


def test_without_durations_of_before_the_share_done_tells_the_time_left() -> None:
    forecast = Forecast({}, ["a.py"] * 4, now=0.0)
    assert forecast.seconds_left(now=1.0) == 0.0  # nothing is done: nothing is known
    forecast.finish("a.py")
    assert forecast.seconds_left(now=5.0) == 15.0


def test_a_test_that_is_not_known_is_taken_for_an_average_one() -> None:
    forecast = Forecast({"a.py": 1.0, "b.py": 3.0}, ["new.py", "a.py"], now=0.0)
    forecast.finish("a.py")
    assert forecast.seconds_left(now=1.0) == 2.0


def test_times_are_told_in_minutes_and_seconds() -> None:
    assert [shown(seconds) for seconds in (0.2, 59.4, 60, 185)] == ["0 s", "59 s", "1 min 00 s", "3 min 05 s"]


def test_the_time_left_is_shown_by_this_very_run(pytestconfig: pytest.Config) -> None:
    assert is_worker(pytestconfig) or pytestconfig.pluginmanager.has_plugin("progress")
