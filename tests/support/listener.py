"""What listens for tests on a port of its own; and passing on what one socket gets to another."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Thread


class Listener:
    """Listens on a free port of 127.0.0.1; each connection is served in a thread of its own."""

    def __init__(self) -> None:
        """Begin: call this once all that `serve` needs is there."""
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        Thread(target=self._accept, daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """Serve one connection until it ends."""
        raise NotImplementedError

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            Thread(target=self.serve, args=(client,), daemon=True).start()


def carry(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until one of the two ends; then tell the other one that nothing more comes."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def end(*sockets: socket.socket) -> None:
    """Close sockets, and let those who wait for something from them know."""
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
