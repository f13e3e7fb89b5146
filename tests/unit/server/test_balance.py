"""How workers find out that one of them has clearly more than its share of the connections."""

from __future__ import annotations

import os

import pytest

from visit_counter.server.balance import Board, Share


def closed(share: Share, in_use: int, others: list[int], seconds: int = 1) -> int:
    """Return how many connections a worker is to close within so many seconds."""
    total = 0
    for _ in range(seconds):
        share.update(in_use, others)
        total += share.surplus
    return total


def test_a_worker_with_all_connections_gives_half_of_its_excess_away_after_three_seconds() -> None:
    share = Share()
    assert [closed(share, 16, [0]) for _ in range(3)] == [0, 0, 4]
    assert [closed(share, 12, [4]) for _ in range(3)] == [0, 0, 2]


@pytest.mark.parametrize(
    ("in_use", "others"), [(16, []), (0, [16]), (1, [0]), (9, [7]), (1050, [1000, 1000]), (0, [0])]
)
def test_a_worker_without_clearly_more_than_the_mean_keeps_its_connections(in_use: int, others: list[int]) -> None:
    share = Share()
    assert closed(share, in_use, others, 10) == 0
    assert not share.is_exceeded


def test_chance_of_single_seconds_closes_nothing() -> None:
    share = Share()
    assert sum(closed(share, in_use, [8]) for in_use in (16, 16, 8) * 5) == 0


def test_a_worker_with_more_than_its_share_leaves_new_connections_to_the_others() -> None:
    share = Share()
    share.update(16, [0])
    assert share.is_exceeded
    share.update(8, [8])
    assert not share.is_exceeded


def test_however_uneven_it_ends_within_sixty_to_forty() -> None:
    for total in (10, 16, 100, 5000):
        share, mine = Share(), total
        for _ in range(60):
            share.update(mine, [total - mine])
            mine -= share.surplus
        assert mine <= 0.6 * total


def test_what_a_forked_worker_writes_the_others_read() -> None:
    board = Board()
    child = os.fork()
    if child == 0:
        board.write(2, 5, 100.0)
        os._exit(0)
    os.waitpid(child, 0)
    board.write(1, 7, 100.0)
    assert (board.others(1, 101.0), board.others(2, 101.0), board.others(3, 101.0)) == ([5], [7], [7, 5])


def test_a_worker_that_writes_no_more_or_has_stopped_is_none_of_the_others() -> None:
    board = Board()
    board.write(1, 5, 100.0)
    board.write(2, 6, 102.0)
    board.write(3, 7, 102.0)
    board.erase(3)
    assert board.others(4, 103.0) == [6]
