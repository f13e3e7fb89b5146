"""A connection in a thread, where gunicorn handles its request without waiting for the client.

The loop has read the whole request before, and afterwards sends the part of the answer that the client did not take.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import TConn

from visit_counter.server.connection import Next
from visit_counter.server.connections import ConnectionWorker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from visit_counter.server.connection import Connection

# How much of an answer the loop sends for a thread. For more than this, the thread waits until the client takes some.
KEPT_BYTES = 256 * 1024


class Wire:
    """Stands for the client's socket in gunicorn. It has no `recv`, so gunicorn iterates over it for the request."""

    def __init__(self, sock: socket.socket, received: bytes, wait_seconds: float) -> None:
        self.unsent = b""
        self.ran_out = False  # gunicorn wanted more than was received: the start of the next request is not known
        self._sock = sock
        self._received = received
        self._wait_seconds = wait_seconds
        self._deadline = 0.0
        self._waits = False

    def __iter__(self) -> Iterator[bytes]:
        yield self._received
        self.ran_out = True

    def sendall(self, data: bytes) -> None:
        """Send, or keep for the loop to send. Raises TimeoutError if the client takes too long over a large answer."""
        rest = memoryview(self.unsent + data if self.unsent else data)
        rest = rest[self._send(rest) :]
        while len(rest) > KEPT_BYTES:
            self._wait()
            rest = rest[self._send(rest) :]
        self.unsent = bytes(rest)

    def send(self, data: bytes) -> int:
        """Do as `sendall`."""
        self.sendall(data)
        return len(data)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a part of a file."""
        file.seek(offset)
        return self.send(file.read(-1 if count is None else count))

    def _send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def _wait(self) -> None:
        self._deadline = self._deadline or time.monotonic() + self._wait_seconds
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        self._waits = True
        ready = poller.poll(max(0.0, self._deadline - time.monotonic()) * 1000)
        self._waits = False
        if not ready:
            raise TimeoutError("the client does not take its answer")

    def give_up(self) -> None:
        """Let the thread fail at once if it waits for the client; the loop calls this."""
        if self._waits:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._sock.fileno()

    def getsockname(self) -> Any:
        """Return the server's address."""
        return self._sock.getsockname()

    def gettimeout(self) -> float:
        """Return 0: for gunicorn, this socket never waits."""
        return 0.0

    def setblocking(self, flag: bool) -> None:
        """Change nothing: the loop needs the socket as it is."""

    def shutdown(self, _how: int) -> None:
        """Leave the end of the connection to the loop."""
        raise OSError("the loop closes this connection")

    def close(self) -> None:
        """Leave the end of the connection to the loop."""


class HandedConnection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection that the loop has handed to a thread."""

    def __init__(self, cfg: Any, connection: Connection, wait_seconds: float) -> None:
        self.wire = Wire(connection.sock, connection.buffer, wait_seconds)
        self.wire.ran_out = connection.is_cut
        super().__init__(cfg, self.wire, connection.client, connection.server)
        self.data_ready = True
        self.was_continued = connection.was_continued


class HandingWorker(ConnectionWorker):
    """Hands requests for gunicorn and Flask to threads, and takes their connections back."""

    def _prepare(self) -> None:
        super()._prepare()
        self._handed: set[HandedConnection] = set()  # the connections that are in threads now
        self._resumed: list[Connection] = []  # connections back from a thread, with another request in the buffer

    def _hand(self, connection: Connection) -> None:
        """Give the connection to a thread, once all of its output is sent."""
        if connection.out:
            connection.next = Next.HAND
            return
        connection.next = Next.READ
        connection.awaits = None
        self._release(connection)
        handed = HandedConnection(self.cfg, connection, self.request_seconds)
        self._handed.add(handed)
        connection.buffer = b""
        connection.was_continued = False
        future = self.tpool.submit(self.handle, handed)
        future.add_done_callback(lambda done: self.method_queue.defer(self._take_back, connection, handed, done))

    def _take_back(self, connection: Connection, handed: HandedConnection, done: Future[bool]) -> None:
        """Go on with a connection that a thread has finished with."""
        now = time.monotonic()
        self._handed.remove(handed)
        keep = not done.cancelled() and done.exception() is None and done.result()
        self._adopt(connection)
        connection.next = Next.READ if keep else Next.CLOSE
        connection.deadline = now + self._keepalive
        connection.buffer = handed.parser.unreader.take_buffered() if keep else b""
        connection.out = handed.wire.unsent
        if connection.out:
            if self._send(connection, now) and connection.buffer:
                self._resumed.append(connection)
        elif not keep:
            self._linger(connection, now)
        elif connection.buffer:
            self._resumed.append(connection)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Do as gthread does, but log no error for a client that does not take a large answer."""
        if conn.was_continued:
            req._expected_100_continue = False  # noqa: SLF001  # gunicorn would send 100 Continue a second time
        try:
            return super().handle_request(req, conn)
        except TimeoutError as error:
            raise StopIteration from error

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Do as gthread does, but close a connection if the loop did not wait for the whole body."""
        return super()._keepalive_after(conn, keepalive) and not conn.wire.ran_out

    def _give_up(self) -> None:
        super()._give_up()
        for handed in self._handed:
            handed.wire.give_up()
