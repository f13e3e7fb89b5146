"""Short runs of the campaign's rows about shards that are not what they seem: a few trials each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import shard_rows
from tests.faults.__main__ import ROWS
from tests.faults.lanes import Row

_ABOUT_SHARDS = [row for row in ROWS if row.function.__module__ == shard_rows.__name__]


@pytest.mark.parametrize("row", _ABOUT_SHARDS, ids=[row.name for row in _ABOUT_SHARDS])
def test_no_visit_is_lost_or_doubled(row: Row, tmp_path: Path) -> None:
    row.function(tmp_path / "row", 2, 1, lambda _: None)
