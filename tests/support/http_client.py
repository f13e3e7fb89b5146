"""Clients for tests and loads that speak HTTP/1 over a socket of their own."""

from __future__ import annotations

import socket
from typing import Self

from tests.support.servers import DEADLINE_SECONDS


class Client:
    """A blocking HTTP/1 client that shows the wire: what it sends and gets is bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(DEADLINE_SECONDS)
        self._read = b""

    def send(self, data: bytes) -> Self:
        """Send bytes as they are."""
        self.sock.sendall(data)
        return self

    def ask(self, method: str, path: str, *fields: str, body: bytes = b"") -> Self:
        """Send an ordinary request."""
        length = (f"Content-Length: {len(body)}",) if body else ()
        lines = [f"{method} {path} HTTP/1.1", "Host: counter.example", *length, *fields]
        return self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def line(self, ending: bytes = b"\r\n\r\n") -> bytes:
        """Return what comes up to the ending."""
        while ending not in self._read:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError(f"closed after {self._read!r}")
            self._read += more
        found, _, self._read = self._read.partition(ending)
        return found

    def answer(self, *, has_body: bool = True) -> Reply:
        """Return the next answer."""
        status, *lines = self.line().decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(fields.get("content-length", 0)) if has_body else 0
        while len(self._read) < length:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("closed within a body")
            self._read += more
        body, self._read = self._read[:length], self._read[length:]
        return Reply(status, fields, body)

    def is_closed(self) -> bool:
        """Wait until the server closes, and tell whether it did so with nothing more to say."""
        try:
            return not self._read and not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


class Asker:
    """A connection with one request under way at the most, for loads: so many of them are waited for at once."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""
        self.is_closing = False  # the server has said so with its last answer

    def receive(self) -> tuple[int, bytes] | None:
        """Take what has come; return the status and the body once the answer is whole, None before.

        Raises ConnectionError if the server closes.
        """
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection on which it was asked something")
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return None
        self._read = b""
        self.is_closing = b"\r\nconnection: close" in head.lower()
        return int(head[9:12]), body


class Reply:
    """One answer: its status line, its fields in lower case, its body."""

    def __init__(self, status: str, fields: dict[str, str], body: bytes) -> None:
        self.status_line = status
        self.status = int(status.split()[1])
        self.fields = fields
        self.body = body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.comparable() == other.comparable()

    def __hash__(self) -> int:
        return hash(self.status_line)

    def __repr__(self) -> str:
        return f"Reply{self.comparable()!r}"

    def comparable(self) -> tuple[str, dict[str, str], bytes]:
        """Return all but what differs from one second, or one server, to the next."""
        fields = {name: value for name, value in self.fields.items() if name not in ("date", "server")}
        return self.status_line, fields, self.body
