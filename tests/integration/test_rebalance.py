"""Shards that come, go and change their names while hosts count: nothing lost, nothing doubled, no count goes down."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from tests.faults import rebalancing
from tests.faults.rebalancing import Trial, plan, rebalance
from tests.redis_servers import Server
from visit_counter.ring import PARTITIONS, Ring
from visit_counter.settings import Shard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Server(tmp_path_factory.mktemp(name)))) for name in NAMES]


@pytest.fixture
def shards(servers: list[Server]) -> list[Shard]:
    """Three shards, empty."""
    for server in servers:
        server.call("FLUSHALL")
    return [Shard(name, server.shard.url) for name, server in zip(NAMES, servers, strict=True)]


def test_from_two_shards_to_three_and_back_under_load(tmp_path: Path, shards: list[Shard]) -> None:
    figures = rebalancing.under_load(tmp_path, shards, seed=1)
    must_move = sum(one != other for one, other in zip(Ring("ab").owners, Ring("abc").owners, strict=True))
    assert figures.partitions == 2 * must_move
    assert figures.reads > 100


def test_a_rebalance_killed_at_random_instants_is_finished_by_the_next(tmp_path: Path, shards: list[Shard]) -> None:
    assert rebalancing.killed(tmp_path, shards, seed=2).kills == 6


@pytest.mark.parametrize(
    "step", ["tell:1", "tell:3", "freeze:2", "copy:2", "place:2", "bury:2", "activate:2", "topology:1", "tell:4"]
)
def test_a_rebalance_killed_at_any_step_is_finished_by_the_next(tmp_path: Path, shards: list[Shard], step: str) -> None:
    with Trial(tmp_path, 3) as trial:
        trial.host(shards[:2], complete=False)
        trial.wait_for_visits(100)
        trial.host(shards)
        process = rebalancing.start_process(shards, step)
        _, said = process.communicate()
        assert process.returncode == -9, said
        trial.wait_for_visits(50)
        rebalance(shards)
        assert plan(shards).is_done
        trial.wait_for_visits(50)
        trial.check(shards)
