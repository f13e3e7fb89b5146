"""A TCP proxy in front of a shard that spoils replies after the shard has executed a request, or leads elsewhere."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from random import Random
from typing import TYPE_CHECKING

from tests.support.fake_shards import GARBAGE

if TYPE_CHECKING:
    from collections.abc import Sequence


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to another; `share`: how likely a reply meets a fault."""

    def __init__(self, port: int, random: Random) -> None:
        self.share = 0.0
        self.whats: Sequence[str] = ("cut", "cut inside", "delay", "lose")
        self.faults = 0
        self._open: set[socket.socket] = set()
        self._target, self._random = port, random
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, port: int) -> None:
        """Cut off all connections; forward those to come to another server."""
        self._target = port
        for each in list(self._open):
            _end(each)
        self._open.clear()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._reply, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        _end(client, server)

    def _reply(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            server.settimeout(None)
            while data := server.recv(1 << 16):
                if self._random.random() < self.share:
                    self.faults += 1
                    what = self._random.choice(self.whats)
                    if what == "cut":
                        break
                    if what == "cut inside":
                        client.sendall(data[: len(data) // 2])
                        break
                    if what == "lose":
                        continue
                    if what == "garbage":
                        client.sendall(self._random.choice(list(GARBAGE.values())))
                        continue
                    time.sleep(self._random.uniform(0.02, 0.2))
                client.sendall(data)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
