"""Named steps on the way of a visit, where a test can stop the process.

    append   a visit's line is in the journal, nothing else happened yet
    replay   lines of other processes are about to be replayed
    seal     the segment is sealed
    send     a batch is about to be sent
    reply    the shards have answered, nothing is recorded yet
    confirm  what the partitions include is recorded
    forget   a segment file is about to be removed

and of a rebalance, for a group of partitions each (`shards.rebalance`)

    freeze, copy, accept, bury, activate  this was done
    tell       one more shard has the next shard map
    shard_map  all partitions are where they belong, the shards do not have the next shard map yet

`hook` is None outside fault tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

hook: Callable[[str], None] | None = None


def step(name: str) -> None:
    """Tell the test, if there is one, that this process has reached a step."""
    if hook is not None:
        hook(name)
