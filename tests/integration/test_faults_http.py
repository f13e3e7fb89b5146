"""Short runs of the campaign's rows about clients and signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import http_rows
from tests.faults.__main__ import ROWS
from tests.faults.lanes import Row
from tests.support.slow_clients import KINDS

_MINE = [row for row in ROWS if row.function.__module__ == http_rows.__name__]


@pytest.mark.parametrize("row", _MINE, ids=[row.name for row in _MINE])
def test_no_visit_is_lost_or_doubled(row: Row, tmp_path: Path) -> None:
    trials = len(KINDS) if row.name == "slow-clients" else 2
    row.function(tmp_path / "row", trials, 1, lambda _: None)
