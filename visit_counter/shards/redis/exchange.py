"""Commands packed by hand, sent over a connection of redis-py, and what comes for each.

redis-py's command methods are not used: they retry on their own, which would count visits twice, and pack argument by
argument, which takes five times as long as here (a flush of 100,000 pages: 0.8 s against 0.15 s, more than the servers
need for it). Nothing here sends anything a second time.

A reply of a shape that its command cannot have is a failure of the connection. The connection is closed, and none of
the replies that would follow is believed.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from redis.exceptions import InvalidResponse, RedisError, ResponseError

from visit_counter.shards.redis.shapes import anything

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.connection import Connection

    from visit_counter.shards.redis.shapes import Shape


# The words of one command, before they are packed.
Command = tuple[bytes, ...]


def exchange(connection: Connection, commands: Sequence[bytes], shapes: Iterable[Shape]) -> list[Any]:
    """Send packed commands and return what came for each: its reply, or the RedisError in place of it.

    `shapes`: what the reply to each of them may be. Once the connection fails, that error stands for every reply not
    yet read.
    """
    replies: list[Any] = []
    shape_of = iter(shapes)
    try:
        connection.send_packed_command([b"".join(commands)])  # type: ignore[no-untyped-call]  # redis-py's gap
        while len(replies) < len(commands):
            shape = next(shape_of)
            try:
                reply = connection.read_response()
            except ResponseError as error:
                replies.append(error)
                continue
            if not shape(reply):
                raise impossible(reply)
            replies.append(reply)
    except RedisError as error:
        drop(connection)
        replies += [error] * (len(commands) - len(replies))
    except BaseException:
        # The next call on this connection would read these replies as its own.
        drop(connection)
        raise
    return replies


def exchange_asking(connection: Connection, commands: Sequence[bytes], shapes: Iterable[Shape]) -> list[Any]:
    """Exchange commands with a server of a cluster that their partitions are being moved to (after an ASK)."""
    asking = pack(b"ASKING")
    both = [part for command in commands for part in (asking, command)]
    return exchange(connection, both, _every_second(shapes))[1::2]


def _every_second(shapes: Iterable[Shape]) -> Iterator[Shape]:
    for first, shape in zip(repeat(anything), shapes, strict=False):  # one of the two has no end
        yield first
        yield shape


def impossible(reply: object) -> InvalidResponse:
    """Return the error for a reply that cannot be one to its command."""
    shown = repr(reply)
    return InvalidResponse(f"a reply that cannot be: {shown if len(shown) <= 80 else f'{shown[:77]}...'}")


def drop(connection: Connection) -> None:
    """Close a connection; replies that were not read are lost."""
    connection.disconnect()  # type: ignore[no-untyped-call]  # redis-py's gap


def pack(*parts: bytes) -> bytes:
    """Return one command in the Redis protocol: an array of bulk strings."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))
