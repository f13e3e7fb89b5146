"""Connections of redis-py that never wait for a name server, refuse garbage, and check which server answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError, RedisError, ResponseError  # noqa: A004 - redis-py's name
from redis.sentinel import SentinelManagedConnection

from visit_counter.shards.identity import KEY
from visit_counter.shards.redis.exchange import exchange, impossible, pack
from visit_counter.shards.redis.names import NAMES
from visit_counter.shards.redis.shapes import is_text_or_nothing

if TYPE_CHECKING:
    from socket import socket

    from visit_counter.shards.identity import Expected


class PlainConnection(Connection):
    """A connection to a server at a host and port.

    `expected`: which shard the server must be. It is asked whenever the connection is opened; never if this is None.
    """

    def __init__(self, *, expected: Expected | None = None, **options: Any) -> None:
        self._expected = expected
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py's gap

    def _connect(self) -> socket:
        """Open the socket to the first of the host's addresses that takes it. Raises OSError."""
        name = self._host
        failed: OSError | None = None
        for address in NAMES.addresses(name, self.socket_connect_timeout):
            self._host = address  # which redis-py looks up without asking anybody
            try:
                return super()._connect()  # type: ignore[no-any-return,no-untyped-call]  # redis-py's gap
            except OSError as error:
                failed = error
            finally:
                self._host = name
        raise failed or OSError(f"{name} has no address")

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply; what cannot be understood at all is an InvalidResponse, like the rest of what cannot be."""
        try:
            return super().read_response(*args, **options)
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever redis-py's parser stumbles over
            self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's gap
            raise impossible(error) from None

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, and then ask the server who it is. Raises RedisError."""
        super().on_connect_check_health(check_health=check_health)
        if self._expected is None or not self._expected.identity.names:
            return
        (text,) = exchange(self, [pack(b"GET", KEY)], [is_text_or_nothing])
        if isinstance(text, ResponseError):
            return  # an ACL does not allow the question
        if isinstance(text, RedisError):
            raise text
        if complaint := self._expected.complaint((text or b"").decode(errors="replace")):
            raise ConnectionError(complaint)


class TlsConnection(SSLConnection, PlainConnection):
    """The same with TLS."""


class WatchedConnection(SentinelManagedConnection, PlainConnection):
    """A connection to whichever server the sentinels name."""


class WatchedTlsConnection(SentinelManagedConnection, SSLConnection, PlainConnection):
    """The same with TLS."""
