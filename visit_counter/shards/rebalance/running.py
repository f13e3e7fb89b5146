"""Running commands of a rebalance on one server: all must succeed, and some be on its disk before the next step."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from visit_counter.errors import RebalanceError
from visit_counter.shards.redis.disk import (
    DISK_SHAPE,
    REPLICAS_SHAPE,
    REPLICATION,
    REPLICATION_SHAPE,
    connected_replicas,
    have_received,
    is_on_disk,
    wait_for_disk,
    wait_for_replicas,
)
from visit_counter.shards.redis.shapes import anything
from visit_counter.shards.redis.wire import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.shards.redis.exchange import Command
    from visit_counter.shards.redis.shapes import Shape
    from visit_counter.shards.redis.store import RedisStore

_DISK_SECONDS = 4.0


def run_all(store: RedisStore, commands: Sequence[Command], shape: Shape = anything) -> list[Any]:
    """Run commands in one round trip and return their replies. Raises RebalanceError for the first that failed.

    `shape`: what the reply to each of them may be.
    """
    replies = store.run(commands, repeat(shape))
    for reply in replies:
        if isinstance(reply, RedisError):
            raise _failed(store, reply)
    return replies


def run_on_disk(store: RedisStore, commands: Sequence[Command], shape: Shape = anything) -> list[Any]:
    """Run commands that write, and wait until that is on the server's disk and has reached its replicas.

    A replica need not have it on its own disk: many have no append-only file, and no partition could ever be moved to
    or from their servers. A server that cannot tell (before 7.2, or without an append-only file) is believed.
    """
    (info,) = run_all(store, [REPLICATION], REPLICATION_SHAPE)
    try:
        replicas = len(connected_replicas(info))
    except RedisError as error:
        raise _failed(store, error) from None
    # In one round trip: a server knows the last write of the connection that it is asked on.
    waits, shapes = [wait_for_disk(0, _DISK_SECONDS)], [DISK_SHAPE]
    if replicas:
        waits.append(wait_for_replicas(replicas, _DISK_SECONDS))
        shapes.append(REPLICAS_SHAPE)
    replies = store.run([*commands, *waits], [*(shape for _ in commands), *shapes])
    written, (on_disk, *received) = replies[: len(commands)], replies[len(commands) :]
    for reply in written:
        if isinstance(reply, RedisError):
            raise _failed(store, reply)
    if is_on_disk(on_disk, 0) is False or not all(have_received(reply, replicas) for reply in received):
        raise RebalanceError(
            f"{store.name}: not on its disk, or its replicas, within {_DISK_SECONDS:.0f} s; run it again to finish"
        )
    return written


def _failed(store: RedisStore, error: RedisError) -> RebalanceError:
    return RebalanceError(f"{explain(store.name, error)}; run it again to finish")
