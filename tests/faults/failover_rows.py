"""The rows of the campaign that fail over: a Redis Cluster, and a primary with its replica under sentinels.

Each trial has a host of its own under load in this process (`support.under_load`) and ends with its oracle's judgement.
In half of the trials the replica that will be promoted lacks what the primary was told last.
"""

from __future__ import annotations

import random
import shutil
import time
from typing import TYPE_CHECKING

from tests.support.cluster import Cluster
from tests.support.oracle import BrokenError
from tests.support.sentinels import Sentinels
from tests.support.under_load import PAGES, load
from visit_counter.shards.cluster.slots import SLOT_OF
from visit_counter.shards.factory import make_store
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from visit_counter.config.settings import Shard


def kill_cluster_primary(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Kill -9 of a primary of a Redis Cluster under load, its replica promoted."""
    dice = random.Random(seed)
    with Cluster(directory / "cluster") as cluster:

        def fault() -> None:
            cluster.fail_over(dice.choice(cluster.primaries()), behind=dice.random() < 0.5)

        return _repeat(directory, cluster.shard, trials, dice, progress, fault, cluster.mend)


def move_cluster_slots(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Ten slots of a Redis Cluster moved to another primary under load."""
    dice = random.Random(seed)
    with Cluster(directory / "cluster") as cluster:

        def fault() -> None:
            for page in dice.sample(PAGES, 10):
                slot = SLOT_OF[partition_of(page)]
                source = cluster.owner_of(slot)
                cluster.move_slot(slot, source, dice.choice([each for each in cluster.servers[:3] if each != source]))

        def mend() -> None:
            for server in cluster.primaries():
                server.call("FLUSHALL")

        return _repeat(directory, cluster.shard, trials, dice, progress, fault, mend)


def kill_watched_primary(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Kill -9 of a primary under load, its replica promoted by sentinels."""
    dice = random.Random(seed)
    with Sentinels(directory / "sentinels") as sentinels:

        def fault() -> None:
            sentinels.fail_over(behind=dice.random() < 0.5)

        return _repeat(directory, sentinels.shard, trials, dice, progress, fault, sentinels.mend)


def _repeat(  # noqa: PLR0917 - one call in each row
    directory: Path,
    shard: Shard,
    trials: int,
    dice: random.Random,
    progress: Callable[[int], None],
    fault: Callable[[], None],
    mend: Callable[[], None],
) -> str:
    visits = answers = unknown = 0
    for trial in range(trials):
        mend()
        host = directory / f"host_{trial}"
        # Nothing is retained for its own sake: only what a replica that may be promoted has not got.
        with load(host, [make_store(shard)], seed=trial, retain_segments=0) as oracle:
            time.sleep(dice.uniform(0.1, 0.5))
            fault()
            time.sleep(dice.uniform(0.1, 0.5))
        if oracle.mistakes:
            raise BrokenError(f"trial {trial}: {len(oracle.mistakes)} mistakes, the first: {oracle.mistakes[0]}")
        shutil.rmtree(host)
        visits += oracle.visits
        answers += oracle.answers
        unknown += oracle.unknown
        progress(trial + 1)
    return f"{visits} visits, {answers} answers judged, {unknown} without the stored part"
