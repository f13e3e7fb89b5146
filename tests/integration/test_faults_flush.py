"""The campaign's rows in which a flush is refused, hangs or meets what somebody else wrote: a few trials of each."""

from __future__ import annotations

from pathlib import Path

from tests.faults import flush_rows


def nothing(_: int) -> None:
    """Nobody watches."""


def test_a_shard_that_refuses_is_told_and_no_visit_is_lost_or_doubled(tmp_path: Path) -> None:
    flush_rows.refuse(tmp_path, 3, 1, nothing)


def test_a_flush_that_hangs_is_told_and_no_visit_is_lost_or_doubled(tmp_path: Path) -> None:
    flush_rows.hang(tmp_path, 2, 1, nothing)


def test_what_somebody_wrote_is_told_and_no_visit_is_lost_or_doubled(tmp_path: Path) -> None:
    flush_rows.write_into(tmp_path, 3, 1, nothing)


def test_a_replica_that_hung_and_is_promoted_later_lacks_nothing(tmp_path: Path) -> None:
    flush_rows.promote_replica(tmp_path, 1, 1, nothing)
