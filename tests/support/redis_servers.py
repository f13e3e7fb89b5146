"""A Valkey server for the tests of stores: it can do what they look at behind the store."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.support.least_acl import LEAST_USER, PASSWORD
from tests.support.servers import ValkeyServer
from visit_counter.config.settings import Shard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Server(ValkeyServer):
    """A Valkey server that runs from the beginning; `options` are words of its command line."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        super().__init__(folder, port, enable_debug_command="local")
        self.options = options
        self.bus = 0
        self.start()

    def _answers(self) -> bool:
        """Tell whether it answers, be it with a refusal: not every one lets the tests in."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64)[:5] in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.kill()

    def role(self) -> str:
        """Return `master` or `slave`, or nothing where it does not say."""
        reply = self.call("ROLE")
        return str(reply[0]) if isinstance(reply, list) else ""

    @property
    def shard(self) -> Shard:
        """Return its name and address as the service knows them; as the least user, if it was started with it."""
        login = f"{LEAST_USER}:{PASSWORD}@" if LEAST_USER in self.options else ""
        return Shard(name=f"redis_{self.port}", url=f"redis://{login}127.0.0.1:{self.port}")

    def client(self, **_: Any) -> Any:
        """Return a plain client that answers with str, to look behind the store."""
        return Redis(port=self.port, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0))

    def call(self, *command: str | int) -> object:
        """Run one command; an error is returned."""
        return call(self.port, *command)


class Servers(ABC):
    """Several servers that make one shard, all of which end with it; use it in a `with`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.servers: list[Server] = []
        try:
            self.start_all(folder, options)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start_all(self, folder: Path, options: Sequence[str]) -> None:
        """Start the servers, and return when they are one shard."""

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.close()


def call(port: int, *command: str | int) -> object:
    """Run one command on the server of a port; an error is returned."""
    with Redis(port=port, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return client.execute_command(*command)
        except RedisError as error:
            return error
