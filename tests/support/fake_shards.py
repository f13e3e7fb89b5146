"""Shards that answer what no shard may answer, for tests."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.listener import Listener
from visit_counter.config.settings import Shard

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# Not RESP at all, cut off, of a wrong type, of a wrong length, no number, too long, too deep.
GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": bytes(64),
    "bytes": bytes(range(128, 256)) + b"\r\n",
    "number": b":7\r\n",
    "no number": b":seven\r\n",
    "endless number": b":" + b"9" * 5000 + b"\r\n",
    "string": b"$3\r\nabc\r\n",
    "no length": b"$x\r\nabc\r\n",
    "negative length": b"$-7\r\nabc\r\n",
    "nothing": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "empty list": b"*0\r\n",
    "numbers": b"*2\r\n:1\r\n:2\r\n",
    "too long a list": b"*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n",
    "deep": b"*1\r\n" * 5000,
    "error in a list": b"*2\r\n-ERR no\r\n$1\r\n2\r\n",
    "moved nowhere": b"-MOVED here there\r\n",
    "status": b"+QUEUED\r\n",
    "not text": b"$4\r\n\xff\xfe\xfd\xfc\r\n",
}


class FakeShard(Listener):
    """Answers every piece of a request with what `reply` gives for it."""

    def __init__(self, reply: Callable[[bytes], bytes]) -> None:
        self.reply = reply
        self.closed = 0
        super().__init__()

    @property
    def shard(self) -> Shard:
        """Return the shard as the service knows it."""
        return Shard(f"fake_{self.port}", f"redis://127.0.0.1:{self.port}")

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while data := client.recv(1 << 16):
                client.sendall(self.reply(data))
        self.closed += 1
