"""Asking the sentinels which server is the primary of a service, and how many replicas may take its place.

All of them are asked at once. Of the answers, the one with the highest `config-epoch` counts: a sentinel that was cut
off from the others goes on naming a primary that has been demoted since.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.connection import ConnectionPool
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError

from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.redis.breaker import Breaker
from visit_counter.shards.redis.exchange import exchange, pack
from visit_counter.shards.redis.shapes import are_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.connection import Connection


class _Sentinel(NamedTuple):
    pool: ConnectionPool
    breaker: Breaker

    def ask(self, command: bytes) -> list[dict[bytes, bytes]] | RedisError:
        """Return what it says of some servers, or why it does not."""
        try:
            connection: Connection = self.pool.get_connection()
            try:
                (reply,) = exchange(connection, [command], repeat(_are_servers))
            finally:
                self.pool.release(connection)
        except RedisError as error:
            reply = error
        if isinstance(reply, RedisError):
            self.breaker.failure()
            return reply
        self.breaker.success()
        return [dict(zip(row[::2], row[1::2], strict=True)) for row in reply]


class Sentinels:
    """The sentinels of one shard. It has the methods that redis-py's pool asks of its own class of that kind."""

    def __init__(self, hosts: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self._all = [_Sentinel(ConnectionPool(host=host, port=port, **options), Breaker()) for host, port in hosts]

    def discover_master(self, service: str) -> tuple[str, int]:
        """Return the host and port of the primary. Raises MasterNotFoundError."""
        found = [
            (_epoch(said), _address(said))
            for said in self._ask(pack(b"SENTINEL", b"MASTERS"))
            if said.get(b"name") == service.encode() and not _is_down(said)
        ]
        if not found:
            raise MasterNotFoundError(f"no primary is known for {service!r}")
        return max(found)[1]

    def discover_slaves(self, service: str) -> list[tuple[str, int]]:
        """Return the host and port of each replica that any of the sentinels takes for up."""
        replies = self._ask(pack(b"SENTINEL", b"REPLICAS", service.encode()))
        return list(dict.fromkeys(_address(said) for said in replies if not _is_down(said)))

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        for sentinel in self._all:
            sentinel.pool.disconnect()

    def _ask(self, command: bytes) -> list[dict[bytes, bytes]]:
        # Sentinels that did not answer lately are left out for a while, unless no other is left.
        asked = [sentinel for sentinel in self._all if sentinel.breaker.allows()] or self._all
        answers = in_parallel([partial(sentinel.ask, command) for sentinel in asked])
        return [said for answer in answers if not isinstance(answer, RedisError) for said in answer]


def _are_servers(reply: Any) -> bool:
    """Tell whether a reply lists servers, each with an address."""
    return type(reply) is list and all(map(_is_server, reply))


def _is_server(row: Any) -> bool:
    if not are_pairs(row):
        return False
    said = dict(zip(row[::2], row[1::2], strict=True))
    return b"ip" in said and b"flags" in said and said.get(b"port", b"").isdigit() and len(said[b"port"]) <= 5


def _address(said: Mapping[bytes, bytes]) -> tuple[str, int]:
    return said[b"ip"].decode(errors="replace"), int(said[b"port"])


def _epoch(said: Mapping[bytes, bytes]) -> int:
    text = said.get(b"config-epoch", b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _is_down(said: Mapping[bytes, bytes]) -> bool:
    return not {b"s_down", b"o_down"}.isdisjoint(said[b"flags"].split(b","))
