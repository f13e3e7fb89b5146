"""Clients that take their time, of every kind: for tests, benchmarks and the fault campaign."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

HEAD = b"POST /visits/slow HTTP/1.1\r\nHost: localhost\r\n"
# What each sends at first, and then over and over, a byte or a chunk at a time.
KINDS = {
    "a head that drips": (HEAD + b"X: ", b"x"),
    "a body that drips": (HEAD + b"Content-Length: 60000\r\n\r\n" + b"x" * 40_000, b"x"),
    "chunks that drip": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a body for Flask that drips": (
        HEAD.replace(b"POST /visits", b"PUT /visits") + b"Content-Length: 60000\r\n\r\n",
        b"x",
    ),
    "no body after Expect": (HEAD + b"Content-Length: 60000\r\nExpect: 100-continue\r\n\r\n", b""),
    "answers not read": ((HEAD.replace(b"POST", b"GET") + b"\r\n") * 50, b""),
    "answers of Flask not read": ((HEAD.replace(b"POST /visits/slow", b"GET /nothing") + b"\r\n"), b""),
    "nothing sent": (b"", b""),
}


class SlowClients:
    """So many clients of one kind, in a thread of their own; each goes on about once a second. Use it in a `with`."""

    def __init__(self, port: int, kind: str, number: int) -> None:
        self._port, self._number = port, number
        self._first, self._drip = KINDS[kind]
        self._is_deaf = "not read" in kind
        self._clients: list[socket.socket | None] = [None] * number
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Self:
        for at in range(self._number):
            self._connect(at)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for client in self._clients:
            if client is not None:
                client.close()

    def _connect(self, at: int) -> None:
        client = socket.socket()
        if self._is_deaf:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(10)
        try:
            client.connect(("127.0.0.1", self._port))
            client.sendall(self._first)
        except OSError:
            client.close()
            self._clients[at] = None
            return
        client.setblocking(False)
        self._clients[at] = client

    def _go_on(self) -> None:
        """Let a tenth of the clients go on, ten times a second; one whose connection was ended begins anew."""
        turn = 0
        while not self._end.wait(0.1):
            turn += 1
            for at in range(turn % 10, self._number, 10):
                client = self._clients[at]
                if client is None or self._is_over(client):
                    if client is not None:
                        client.close()
                    self._connect(at)

    def _is_over(self, client: socket.socket) -> bool:
        try:
            with suppress(BlockingIOError):
                client.send(self._drip)
            if self._is_deaf:
                return False
            with suppress(BlockingIOError):
                return b"HTTP/1.1 100" not in (client.recv(4096) or b"")
        except OSError:
            return True
        return False
