"""TCP proxies in front of a shard that spoil replies after the shard has executed a request, or lead elsewhere."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from itertools import count
from threading import Lock, Thread
from typing import TYPE_CHECKING

from tests.support.fake_shards import GARBAGE
from tests.support.listener import Listener, end
from visit_counter.config.settings import Shard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random


class ShardProxy(Listener):
    """Passes on what is asked and what is replied; `request` and `reply` may look at it and change it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[socket.socket] = set()
        self._numbers = count()
        super().__init__()

    @property
    def shard(self) -> Shard:
        """Return the shard as seen through the proxy."""
        return Shard(name="proxied", url=f"redis://127.0.0.1:{self.port}")

    def request(self, connection: int, data: bytes) -> None:
        """Take note of what a client sends over a connection, before the shard gets it."""

    def reply(self, connection: int, data: bytes) -> tuple[bytes, bool]:
        """Return what the client gets in place of what the shard said, and whether the connection goes on."""
        raise NotImplementedError

    def serve(self, client: socket.socket) -> None:
        number = next(self._numbers)
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self._open |= {client, server}
        Thread(target=self._replies, args=(number, server, client), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(1 << 16):
                self.request(number, data)
                server.sendall(data)
        end(client, server)

    def _replies(self, number: int, server: socket.socket, client: socket.socket) -> None:
        goes_on = True
        with suppress(OSError):
            while goes_on and (data := server.recv(1 << 16)):
                data, goes_on = self.reply(number, data)
                client.sendall(data)
        end(client, server)


class Proxy(ShardProxy):
    """Lets replies meet faults by chance; `share`: how likely."""

    def __init__(self, port: int, random: Random) -> None:
        self.share = 0.0
        self.whats: Sequence[str] = ("cut", "cut inside", "delay", "lose")
        self.faults = 0
        self._random = random
        super().__init__(port)

    def lead_to(self, port: int) -> None:
        """Cut off all connections; forward those to come to another server."""
        self._target = port
        end(*self._open)
        self._open.clear()

    def reply(self, _: int, data: bytes) -> tuple[bytes, bool]:
        if self._random.random() >= self.share:
            return data, True
        self.faults += 1
        what = self._random.choice(self.whats)
        if what == "cut":
            return b"", False
        if what == "cut inside":
            return data[: len(data) // 2], False
        if what == "lose":
            return b"", True
        if what == "garbage":
            return self._random.choice(list(GARBAGE.values())), True
        time.sleep(self._random.uniform(0.02, 0.2))
        return data, True


class LossyProxy(ShardProxy):
    """Once told to, carries requests to the shard and drops the connection instead of replying."""

    def __init__(self, port: int) -> None:
        self.lose_reply_to: bytes | None = None
        self.requests = b""
        self._lost: set[int] = set()
        self._lock = Lock()
        super().__init__(port)

    def request(self, connection: int, data: bytes) -> None:
        with self._lock:
            self.requests += data
        if self.lose_reply_to is not None and self.lose_reply_to in data:
            self._lost.add(connection)

    def reply(self, connection: int, data: bytes) -> tuple[bytes, bool]:
        return (b"", False) if connection in self._lost else (data, True)
