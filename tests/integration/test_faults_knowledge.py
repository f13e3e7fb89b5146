"""Short runs of the campaign's rows about what a host knows of stored counts: a trial under each worker class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import knowledge_rows
from tests.faults.__main__ import ROWS
from tests.faults.lanes import Row

if TYPE_CHECKING:
    from pathlib import Path

_MINE = [row for row in ROWS if row.function.__module__ == knowledge_rows.__name__]


@pytest.mark.parametrize("row", _MINE, ids=[row.name for row in _MINE])
def test_no_reader_of_a_host_sees_a_count_go_down(row: Row, tmp_path: Path) -> None:
    row.function(tmp_path / "row", 2, 1, lambda _: None)
