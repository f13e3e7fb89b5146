"""Short runs of the campaign's rows that need no gunicorn."""

from __future__ import annotations

from pathlib import Path

from tests.faults import local_rows


def _ignore(trial: int) -> None:
    """Show no progress."""


def test_a_lost_reply_counts_nothing_twice(tmp_path: Path) -> None:
    local_rows.lose_replies(tmp_path / "row", 40, 1, _ignore)


def test_damage_at_any_offset_loses_one_line_at_most(tmp_path: Path) -> None:
    local_rows.damage_journal(tmp_path / "row", 5, 1, _ignore)
