"""Running commands of a rebalance on one server: all must succeed, and some be on its disk before the next step."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from visit_counter.errors import RebalanceError
from visit_counter.shards.redis.shapes import anything, either, is_number, is_pair_of_numbers, is_pong, is_text
from visit_counter.shards.redis.wire import explain, is_away

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.shards.rebalance.moving import Command
    from visit_counter.shards.redis.shapes import Shape
    from visit_counter.shards.redis.store import RedisStore

_DISK_MILLISECONDS = b"4000"


def run_all(store: RedisStore, commands: Sequence[Command], shape: Shape = anything) -> list[Any]:
    """Run commands in one round trip and return their replies. Raises RebalanceError for the first that failed.

    `shape`: what the reply to each of them may be.
    """
    replies = store.run(commands, repeat(shape))
    for reply in replies:
        if isinstance(reply, RedisError):
            raise RebalanceError(f"{explain(store.name, reply)}; run it again to finish")
    return replies


def run_on_disk(store: RedisStore, commands: Sequence[Command], shape: Shape = anything) -> list[Any]:
    """Run commands that write, and wait until that is on the server's disk and has reached its replicas.

    A server that cannot tell (before 7.2, or without an append-only file) is taken at its word.
    """
    (info,) = run_all(store, [(b"INFO", b"replication")], is_text)
    counts = [line.partition(b":")[2] for line in bytes(info).splitlines() if line.startswith(b"connected_slaves:")]
    replicas = counts[0] if counts and counts[0].isdigit() else b"0"
    waits = [(b"WAITAOF", b"1", b"0", _DISK_MILLISECONDS), (b"WAIT", replicas, _DISK_MILLISECONDS)]
    # In one round trip: a server knows the last write of the connection it is asked on.
    shapes = [*(shape for _ in commands), is_pair_of_numbers, either(is_number, is_pong)]
    *replies, on_disk, reached = store.run(
        [*commands, *(waits if replicas != b"0" else (waits[0], (b"PING",)))], shapes
    )
    for reply in replies:
        if isinstance(reply, RedisError):
            raise RebalanceError(f"{explain(store.name, reply)}; run it again to finish")
    if isinstance(on_disk, RedisError):
        synced = isinstance(on_disk, ResponseError) and not is_away(on_disk)
    else:
        synced = on_disk[0] >= 1
    if not synced or (replicas != b"0" and (isinstance(reached, RedisError) or reached < int(replicas))):
        raise RebalanceError(f"{store.name}: not on its disk, or its replicas, within 4 s; run it again to finish")
    return replies
