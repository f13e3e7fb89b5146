"""From a shard's url to redis-py's pools of connections: plain, with TLS, through sentinels, to one node of a cluster.

    redis://user:password@host:6379              one server
    rediss://user:password@host:6379?ssl_ca_certs=/run/ca.pem
    redis+sentinel://user:password@host:26379,host:26379/service?ssl=true&sentinel_password=...
    redis+cluster://user:password@host:6379,host:6379?ssl=true

User and password are those of the servers and percent-encoded. Nothing here keeps a url for a message.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from visit_counter.config.embedded_files import read_password
from visit_counter.config.shard_urls import TLS_OPTIONS
from visit_counter.errors import EmbeddedError
from visit_counter.shards.redis.connections import (
    PlainConnection,
    TlsConnection,
    WatchedConnection,
    WatchedTlsConnection,
)
from visit_counter.shards.redis.resp import listener_is_ours
from visit_counter.shards.redis.sentinels import Sentinels

if TYPE_CHECKING:
    from visit_counter.config.settings import Shard
    from visit_counter.shards.identity import Expected

SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"


class Target(NamedTuple):
    """The parts of a shard's url. `login` is as it stands in the url, `user:password@` or empty."""

    scheme: str
    login: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    options: dict[str, str]


def target_of(shard: Shard) -> Target:
    """Take a shard's url apart; the settings have checked it."""
    scheme, _, rest = shard.url.partition("://")
    login, at, behind = rest.rpartition("@")
    where, _, query = behind.partition("?")
    path = where.partition("/")[2].strip("/")
    hosts = tuple(split_host(host) for host in shard.address.split(","))
    return Target(scheme, f"{login}{at}", hosts, path, dict(parse_qsl(query, keep_blank_values=True)))


def split_host(address: str) -> tuple[str, int]:
    """Return the host, without the brackets of IPv6, and the port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_host(host: str, port: int) -> str:
    """Return `host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_url(target: Target, host: str, port: int) -> str:
    """Return the plain url of one server behind a target, with the same login and TLS."""
    options = {name: value for name, value in target.options.items() if name in TLS_OPTIONS}
    tls = target.scheme == "rediss" or target.options.get("ssl") == "true"
    scheme = "rediss" if tls else "redis"
    path = f"/{target.path}" if target.path and target.scheme in ("redis", "rediss") else ""
    return f"{scheme}://{target.login}{join_host(host, port)}{path}?{urlencode(options)}".rstrip("?")


def make_pool(
    shard: Shard, connect_seconds: float, answer_seconds: float, expected: Expected | None = None
) -> ConnectionPool:
    """Return a pool that opens connections to the server a shard is; never of a cluster as a whole.

    `expected`: whom the server must say it is whenever a connection is opened.
    """
    timeouts: dict[str, Any] = {
        "socket_connect_timeout": connect_seconds,
        "socket_timeout": answer_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        # No CLIENT SETINFO: two round trips less on connecting, and one command less in the ACL.
        "driver_info": None,
    }
    if shard.password_file:
        timeouts["credential_provider"] = _PasswordFile(Path(shard.password_file), split_host(shard.address)[1])
    target = target_of(shard)
    server: dict[str, Any] = dict(
        parse_url(server_url(target, *target.hosts[0]))  # type: ignore[no-untyped-call]  # redis-py's gap
    )
    server.pop("connection_class", None)
    tls = target.scheme == "rediss" or target.options.get("ssl") == "true"
    if target.scheme != SENTINEL:
        kind = TlsConnection if tls else PlainConnection
        return ConnectionPool(connection_class=kind, expected=expected, **server, **timeouts)
    for name in ("host", "port"):
        server.pop(name, None)
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]  # redis-py's gap
        unquote(target.path),
        _sentinels(target, server, timeouts, tls=tls),
        connection_class=WatchedTlsConnection if tls else WatchedConnection,
        expected=expected,
        **server,
        **timeouts,
    )


class _PasswordFile(CredentialProvider):
    """The login of an embedded shard; its password may be made after this process has started."""

    def __init__(self, path: Path, port: int) -> None:
        self._path, self._port = path, port

    def get_credentials(self) -> tuple[str, str]:
        """Return user and password. Raises redis-py's AuthenticationError."""
        if not listener_is_ours(self._port):
            raise AuthenticationError(f"port {self._port} is taken by a program of another user")
        try:
            return "default", read_password(self._path)
        except EmbeddedError as error:
            raise AuthenticationError(str(error)) from None


def _sentinels(target: Target, server: dict[str, Any], timeouts: dict[str, Any], *, tls: bool) -> Sentinels:
    """Return the sentinels of a target: with the servers' TLS, and a login of their own."""
    options: dict[str, Any] = {name: value for name, value in server.items() if name.startswith("ssl")}
    for name in ("username", "password"):
        if value := target.options.get(f"sentinel_{name}"):
            options[name] = value
    options["connection_class"] = TlsConnection if tls else PlainConnection
    return Sentinels(target.hosts, options | timeouts)
