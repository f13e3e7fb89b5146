"""Rows of the fault campaign side by side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults import lanes
from tests.faults.lanes import Campaign, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _hold(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A fault that does no harm."""
    progress(trials)
    return f"{directory.name} with seed {seed}"


def _break(*_: object) -> str:
    """A fault that breaks a promise."""
    raise AssertionError("a visit is lost")


def _die(*_: object) -> str:
    """A fault that ends the row's own process."""
    os._exit(3)


ROWS = (Row("holds", 10, 1, _hold), Row("breaks", 10, 2, _break), Row("dies", 10, 3, _die))


def run(*names: str, side_by_side: int = 2) -> bool:
    """Run rows of this module."""
    rows = [(row, row.trials) for row in ROWS if row.name in names]
    return Campaign(rows, 7, table=__name__).run(side_by_side)


def test_the_table_has_the_rows_in_their_order_whichever_ends_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("holds", "breaks", "dies")
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| A fault")]
    assert [line.split(" | ")[1] for line in table] == ["`holds`", "`breaks`", "`dies`"]
    assert "| 10 |" in table[0]
    assert table[0].endswith("| held | holds with seed 7 |")
    assert table[1].endswith("| BROKEN | AssertionError: a visit is lost |")
    assert table[2].endswith("| BROKEN | its process ended with status 3 |")


def test_a_campaign_whose_rows_all_hold_succeeds() -> None:
    assert run("holds", side_by_side=1)


def test_it_is_told_how_far_the_rows_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lanes, "_LOG_SECONDS", 0.0)
    run("holds", "breaks")
    said = capsys.readouterr().err
    assert "0 of 2 rows, about" in said
    assert "holds: 10 trials in" in said
