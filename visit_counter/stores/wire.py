"""Asking a shard: connections of redis-py, commands packed by hand, every reply or error in its place.

redis-py opens, authenticates, pools and parses. Its command methods are not used: they retry on their own, which would
count visits twice, and pack argument by argument, which takes five times as long as here (a flush of 100,000 pages:
0.8 s against 0.15 s, more than the servers need for it). Nothing here sends anything a second time.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool

from visit_counter.errors import StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.stores.pools import join_host, make_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.connection import Connection

    from visit_counter.settings import Shard


class Wire:
    """The connections to one shard that share a pair of time-outs; opened when first needed.

    After a fork the pool starts anew, so that a connection is never used by two processes.
    """

    def __init__(self, shard: Shard, connect_seconds: float, answer_seconds: float) -> None:
        self._pool = make_pool(shard, connect_seconds, answer_seconds)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection that is open and has no reply waiting; raises RedisError."""
        connection = self._pool.get_connection()
        try:
            yield connection
        finally:
            self._pool.release(connection)

    def open(self, instead_of: Connection | None = None) -> Connection:
        """Return a connection to keep, newly opened in place of one that can no longer be used; raises RedisError."""
        if instead_of is not None:
            drop(instead_of)
            self._pool.release(instead_of)
        return self._pool.get_connection()

    def ask(self, commands: Sequence[bytes], *, asking: bool = False) -> list[Any]:
        """Send the commands in one go and return what came for each: its reply, or the RedisError."""
        try:
            with self.connection() as connection:
                return (exchange_asking if asking else exchange)(connection, commands)
        except RedisError as error:
            return [error] * len(commands)

    @property
    def address(self) -> str:
        """The server as host:port, for people; with sentinels the primary they named last, or nothing."""
        if isinstance(self._pool, SentinelConnectionPool):
            return join_host(*self._pool.master_address) if self._pool.master_address else ""
        known = self._pool.connection_kwargs
        return join_host(known["host"], known["port"])

    def known_replicas(self) -> int:
        """Return how many replicas the sentinels may promote; 0 without sentinels. Asks them; never raises."""
        if not isinstance(self._pool, SentinelConnectionPool):
            return 0
        replicas = self._pool.sentinel_manager.discover_slaves(self._pool.service_name)
        return len(replicas)

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self._pool.disconnect()
        if isinstance(self._pool, SentinelConnectionPool):
            self._pool.sentinel_manager.close()


def exchange(connection: Connection, commands: Sequence[bytes]) -> list[Any]:
    """Send packed commands and return what came for each: its reply, or the RedisError in place of it.

    Once the connection fails, that error stands for every reply not yet read.
    """
    replies: list[Any] = []
    try:
        connection.send_packed_command([b"".join(commands)])  # type: ignore[no-untyped-call]  # redis-py's gap
        while len(replies) < len(commands):
            try:
                replies.append(connection.read_response())
            except ResponseError as error:
                replies.append(error)
    except RedisError as error:
        drop(connection)
        replies += [error] * (len(commands) - len(replies))
    except BaseException:
        # Replies not read would be taken for those of the next call.
        drop(connection)
        raise
    return replies


def exchange_asking(connection: Connection, commands: Sequence[bytes]) -> list[Any]:
    """Exchange commands with a server of a cluster that their partitions are on the way to (after an ASK)."""
    asking = pack(b"ASKING")
    return exchange(connection, [part for command in commands for part in (asking, command)])[1::2]


def drop(connection: Connection) -> None:
    """Close a connection, and forget what it may still have to say."""
    connection.disconnect()  # type: ignore[no-untyped-call]  # redis-py's gap


def pack(*parts: bytes) -> bytes:
    """Return one command in the Redis protocol: an array of bulk strings."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


def explain(shard: str, error: RedisError) -> StoreError:
    """Return the StoreError that an error of redis-py means. redis-py's texts hold addresses, but no passwords."""
    if isinstance(error, MasterNotFoundError):  # its text shows objects of redis-py
        return StoreUnavailableError(shard, "the sentinels do not answer, or know no primary that does")
    # redis-py takes the code off the text of the errors it knows, and a reader would look for it.
    code = getattr(error, "status_code", None)
    text = f"{code} {error}" if code and code != "ERR" else str(error)
    # AskError, which MOVED is one of: not carried out, and it will be once it is asked in the right place.
    unavailable = is_away(error) or isinstance(error, AskError)
    return (StoreUnavailableError if unavailable else StoreRefusedError)(shard, text)


def is_elsewhere(reply: object) -> bool:
    """Tell whether a command was refused because its partition is not in its own place (see `stores.moving`)."""
    # Not at the start: servers before 7.0 put the text of a script's error behind their own.
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


def is_away(reply: object) -> bool:
    """Tell whether this, in place of a reply, means that the shard cannot answer now (and not that it refuses)."""
    if isinstance(reply, AuthenticationError | AuthorizationError):  # kinds of ConnectionError, in redis-py
        return False
    if isinstance(reply, ResponseError):
        return isinstance(reply, ClusterDownError | TryAgainError) or str(reply).startswith("BUSY ")
    return isinstance(reply, RedisError)
