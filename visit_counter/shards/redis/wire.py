"""The connections to one shard, and what an error of redis-py means."""

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
from visit_counter.shards.redis.exchange import drop, exchange, exchange_asking
from visit_counter.shards.redis.pools import join_host, make_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.connection import Connection

    from visit_counter.config.settings import Shard
    from visit_counter.shards.identity import Expected
    from visit_counter.shards.redis.shapes import Shape

_LONGEST_TEXT = 200


class Wire:
    """The connections to one shard that share a pair of time-outs; opened when first needed.

    After a fork the pool opens new connections, so that none is used by two processes.
    """

    def __init__(
        self, shard: Shard, connect_seconds: float, answer_seconds: float, expected: Expected | None = None
    ) -> None:
        self._pool = make_pool(shard, connect_seconds, answer_seconds, expected)

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

    def ask(self, commands: Sequence[bytes], shapes: Iterable[Shape], *, asking: bool = False) -> list[Any]:
        """Send the commands in one go and return what came for each: its reply, of its shape, or the RedisError."""
        try:
            with self.connection() as connection:
                return (exchange_asking if asking else exchange)(connection, commands, shapes)
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


def peer_of(connection: Connection) -> str:
    """Return the address of the server that a connection leads to; "" where that is not known."""
    try:
        host, port, *_ = connection._sock.getpeername()  # type: ignore[attr-defined]  # noqa: SLF001 - redis-py has no other way
    except (AttributeError, OSError, ValueError):
        return ""
    return join_host(host, port)


def explain(shard: str, error: RedisError) -> StoreError:
    """Return the StoreError that an error of redis-py means. redis-py's texts hold addresses, but no passwords."""
    if isinstance(error, MasterNotFoundError):
        return StoreUnavailableError(shard, "the sentinels do not answer, or know no primary that does")
    # redis-py removes the code from the text of the errors it knows, but a person would search for it.
    code = getattr(error, "status_code", None)
    text = f"{code} {error}" if code and code != "ERR" else str(error)
    if len(text) > _LONGEST_TEXT:  # a server that is none may say anything
        text = f"{text[: _LONGEST_TEXT - 3]}..."
    # AskError is also the base of MovedError. The command was not carried out; another server would have done it.
    unavailable = is_down(error) or is_unserved(error) or isinstance(error, AskError)
    return (StoreUnavailableError if unavailable else StoreRefusedError)(shard, text)


def is_elsewhere(reply: object) -> bool:
    """Tell whether a command was refused because its partition is not in its own place (see `rebalance.moving`)."""
    # Not at the start: servers before 7.0 put the text of a script's error behind their own.
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


def is_down(reply: object) -> bool:
    """Tell whether this, in place of a reply, means that the server cannot answer now (and not that it refuses)."""
    if isinstance(reply, AuthenticationError | AuthorizationError):  # kinds of ConnectionError, in redis-py
        return False
    if isinstance(reply, ResponseError):
        down = isinstance(reply, ClusterDownError) and not is_unserved(reply)
        return down or str(reply).startswith("BUSY ")
    return isinstance(reply, RedisError)


def is_unserved(reply: object) -> bool:
    """Tell whether a server of a cluster answers, and cannot for this one partition: nobody has its slot just now."""
    if isinstance(reply, ClusterDownError):
        return "slot" in str(reply).lower()  # else the whole cluster is down, as far as the server knows
    return isinstance(reply, TryAgainError)
