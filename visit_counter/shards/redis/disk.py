"""Waiting until what was written over a connection is on disk: the commands, and what their replies mean.

A server remembers for each connection where its last write stands. WAITAOF and WAIT cover that write, and everything
that was written before it over any connection. They cover it on this server and on its replicas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from visit_counter.shards.redis.exchange import impossible
from visit_counter.shards.redis.replicas import replicas_of
from visit_counter.shards.redis.shapes import is_number, is_pair_of_numbers, is_text
from visit_counter.shards.redis.wire import is_down

if TYPE_CHECKING:
    from visit_counter.shards.redis.exchange import Command

# Asks a server for its replicas; `connected_replicas` reads the reply, which has this shape.
REPLICATION: Command = (b"INFO", b"replication")
REPLICATION_SHAPE = is_text
# The shapes of the replies to `wait_for_disk` and `wait_for_replicas`.
DISK_SHAPE, REPLICAS_SHAPE = is_pair_of_numbers, is_number


def connected_replicas(reply: Any) -> list[str]:
    """Return the addresses of the replicas in a reply to REPLICATION. Raises RedisError if it is none."""
    if isinstance(reply, RedisError):
        raise reply
    if b"\nconnected_slaves:" not in reply:
        raise impossible(reply)
    return replicas_of(reply.decode(errors="replace"))


def wait_for_disk(replicas: int, timeout_seconds: float) -> Command:
    """Return the command that waits for the server's disk, and for the disks of this many replicas."""
    return (b"WAITAOF", b"1", b"%d" % replicas, _milliseconds(timeout_seconds))


def is_on_disk(reply: Any, replicas: int) -> bool | None:
    """Tell whether a reply to `wait_for_disk` confirms it.

    None where the server cannot tell: before version 7.2, or without an append-only file.
    """
    if isinstance(reply, ResponseError) and not is_down(reply):
        return None
    if isinstance(reply, RedisError):
        return False
    return bool(reply[0] >= 1 and reply[1] >= replicas)


def wait_for_replicas(replicas: int, timeout_seconds: float) -> Command:
    """Return the command that waits until this many replicas have received the write; not for their disks."""
    return (b"WAIT", b"%d" % replicas, _milliseconds(timeout_seconds))


def have_received(reply: Any, replicas: int) -> bool:
    """Tell whether a reply to `wait_for_replicas` confirms it."""
    return not isinstance(reply, RedisError) and bool(reply >= replicas)


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % max(1, int(seconds * 1000))
