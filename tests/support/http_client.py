"""A client for tests that shows the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from tests.support.servers import DEADLINE_SECONDS

if TYPE_CHECKING:
    import socket


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
