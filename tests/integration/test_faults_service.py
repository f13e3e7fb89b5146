"""Short runs of the campaign's rows that have a service under load: a few trials each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults import embedded_rows, journal_rows, rows
from tests.faults.__main__ import ROWS
from tests.faults.lanes import Row

_MODULES = (rows.__name__, embedded_rows.__name__, journal_rows.__name__)
_UNDER_LOAD = [row for row in ROWS if row.function.__module__ in _MODULES]


@pytest.mark.parametrize("row", _UNDER_LOAD, ids=[row.name for row in _UNDER_LOAD])
def test_no_visit_is_lost_or_doubled(row: Row, tmp_path: Path) -> None:
    if row.name == "disk-full" and os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    if row.name == "clock" and shutil.which("cc") is None:
        pytest.skip("the clock is set by a library that has to be compiled")
    row.function(tmp_path / "row", 2, 1, lambda _: None)
