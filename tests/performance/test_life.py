"""The benchmark of the whole cost of a visit works: its rows, in a short version. Speeds are not judged.

In the whole suite a few rows stand for all, one of each kind; `pytest tests/performance/test_life.py` tries them all.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.conftest import is_whole_suite
from tests.performance.life.__main__ import ROWS, Row, measure
from tests.performance.life.bench import SHORT
from tests.support import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_THE_WHOLE_SUITE = ("first", "distinct", "worker", "start")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is measured is not covered, and nothing that a row starts outlives it."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    before = set(processes.tree(os.getpid()))
    yield
    left = set(processes.tree(os.getpid())) - before
    assert not left, [processes.name_of(pid) for pid in left]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_measures_figures_against_goals(row: Row, pytestconfig: pytest.Config) -> None:
    if row.name not in IN_THE_WHOLE_SUITE and is_whole_suite(pytestconfig):
        pytest.skip("in the whole suite a few rows stand for all")
    if row.missing:
        pytest.skip(row.missing)
    lines = measure(row, SHORT)
    assert lines
    for line in lines:
        found = re.match(r"-?[\d,]+(\.\d+)?", line.measured)
        assert found, line
        assert math.isfinite(float(found[0].replace(",", "")))
        assert re.match(r"[\d,.]+", line.goal)
        assert line.reached in (True, False)
