"""The connections of the worker's loop: accepted, read from, sent to, lingered on, closed. `worker` answers them.

A connection is in one of these states; only the loop's thread moves it from one to the next:

    accept -> reading <-> (sending) -> lingering -> closed
                 |  ^
                 v  |
               in a thread, or waiting for a shard

While a request is not all here, `awaits` tells after each read whether it is worth another look; it has one deadline.
"""

from __future__ import annotations

import math
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

from visit_counter.server.http1 import TIMEOUT_RESPONSE

if TYPE_CHECKING:
    from visit_counter.server.bodies import Awaited

READ_BYTES = 8192
_LISTEN = select.EPOLLIN | getattr(select, "EPOLLEXCLUSIVE", 0)  # Linux 4.5
# How long, and for how much, a closing connection is read from (RFC 9112 section 9.6): closing at once
# would reset it, and the client could lose the answer.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024

# How soon a worker that could not accept a connection tries again.
RETRY_SECONDS = 0.05
# How long clients have when the worker is told to stop, and to stop quickly (SIGINT, SIGQUIT).
STOP_SECONDS = 1.0
LAST_SECONDS = 0.2
QUICK_SECONDS = 0.2


class Connection:
    """One client's connection, as the loop sees it. Times are `time.monotonic()` seconds."""

    __slots__ = (
        "awaits",
        "blocked",
        "buffer",
        "client",
        "closing",
        "deadline",
        "fd",
        "handing",
        "held",
        "is_cut",
        "lingered",
        "out",
        "partial",
        "server",
        "sock",
        "waits_since",
        "was_continued",
    )

    def __init__(self, sock: socket.socket, client: Any, server: Any, deadline: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.client = client
        self.server = server
        self.buffer = b""  # read, and not yet answered
        self.out = b""  # to be sent before anything else happens
        self.deadline = deadline
        self.awaits: Awaited | None = None  # what a part of a request lacks
        self.is_cut = False  # the head in the buffer was given an end: no other request may follow
        self.was_continued = False  # the client was told to send the body of its request
        self.partial = False  # the buffer holds a part of a request, for which `deadline` was set
        self.closing = False  # close once `out` is sent
        self.handing = False  # hand to a thread once `out` is sent
        self.waits_since = 0.0  # since when its request waits for a shard, 0.0 if it does not
        self.held = b""  # to be sent with the answer that it waits for
        self.blocked = False  # the socket would not take all of `out`: waiting until it does
        self.lingered = -1  # bytes thrown away since the last answer; -1 while not lingering


class ConnectionWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Keeps the connections in an epoll set. Every method runs in the loop's thread and returns at once."""

    # How long a client may take to send one request or to take its answer; gunicorn has no setting for it.
    request_seconds = 30.0

    _quit_at = math.inf  # when the worker was told to stop quickly (monotonic seconds)

    alive: bool
    _accepting: bool

    def _prepare(self) -> None:
        # gthread's selector makes several objects per event; epoll itself makes one pair.
        self.poller.close()
        self.poller: select.epoll = select.epoll()
        self.poller.register(self.method_queue.fileno(), select.EPOLLIN)
        self._connections: dict[int, Connection] = {}  # those the loop has; a thread may have others
        # gthread's `handle_request` compares the length of this with `max_keepalived`.
        self.keepalived_conns = self._connections
        self._keepalive = float(self.cfg.keepalive)
        self._next_check = 0.0
        self._listeners = {listener.fileno(): listener for listener in self.sockets}

    def _hand(self, connection: Connection) -> None:
        """Give the connection to a thread, once what is to be sent before is sent."""
        raise NotImplementedError

    def _turn(self, timeout_seconds: float) -> None:
        """Wait for events, and do all that they allow without waiting."""
        raise NotImplementedError

    def set_accept_enabled(self, enabled: bool) -> None:
        """Listen, or do not."""
        if enabled == self._accepting:
            return
        self._accepting = enabled
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            if enabled:
                self.poller.register(fd, _LISTEN)
            else:
                self.poller.unregister(fd)

    def _queue_again(self) -> None:
        """Listen as the last of the workers, so that another idle one is woken for the next connection.

        The kernel wakes one idle worker, the one that has listened longest: without this always the same. It also
        finds a connection whose worker was woken for it and died, or could not take it.
        """
        if self._accepting:
            for fd in self._listeners:
                self.poller.unregister(fd)
                self.poller.register(fd, _LISTEN)

    def _stop_listening(self) -> None:
        """Take the connections that clients have made already, then close the sockets that they come from.

        The port is closed once every process has closed them; the kernel accepts on it until then.
        """
        self.set_accept_enabled(False)
        for listener in self._listeners.values():
            while self.nr_conns < self.worker_connections and self._accept(listener, time.monotonic()):
                pass
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: Any, now: float) -> bool:
        """Accept one connection, and leave the next to another worker that is idle; return whether there was one."""
        try:
            sock, client = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            # Out of file descriptors or memory: the next check listens again. The kernel has woken nobody else for it.
            self.log.error("Cannot accept a connection: %s", error)
            self.set_accept_enabled(False)
            self._next_check = now + RETRY_SECONDS
            return False
        self.nr_conns += 1
        deadline = now + DEFAULT_WORKER_DATA_TIMEOUT + self._keepalive
        self._adopt(Connection(sock, client, listener.getsockname(), deadline))
        if self.nr_conns >= self.worker_connections:
            self.set_accept_enabled(False)
        self._queue_again()
        return True

    def _adopt(self, connection: Connection) -> None:
        """Let the loop have the connection."""
        connection.sock.setblocking(False)
        self._connections[connection.fd] = connection
        self.poller.register(connection.fd, select.EPOLLIN)

    def _release(self, connection: Connection) -> None:
        """Take the connection out of the loop: it is not read from until it is adopted again."""
        del self._connections[connection.fd]
        self.poller.unregister(connection.fd)

    def _receive(self, connection: Connection) -> bool:
        """Read what there is; return whether it is to be looked at."""
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(connection)
            return False
        if connection.lingered >= 0:
            connection.lingered += len(data)
            if not data or connection.lingered > LINGER_BYTES:
                self._drop(connection)
            return False
        if not data:
            if connection.buffer:
                self._hand(connection)  # gunicorn decides what half a request deserves
            else:
                self._drop(connection)
            return False
        connection.buffer += data
        return connection.awaits is None or self._has_come(connection)

    def _has_come(self, connection: Connection) -> bool:
        """Return whether the loop is to look at a request again that a part of has come."""
        awaits = connection.awaits
        if awaits is None or not awaits.is_here(connection.buffer):
            return False
        connection.awaits = None
        if not awaits.is_ordinary:
            self._hand(connection)
        return awaits.is_ordinary

    def _send(self, connection: Connection, now: float) -> bool:
        """Send what the socket takes; return whether that was all and the loop may go on with the connection."""
        out = connection.out
        try:
            sent = connection.sock.send(out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return False
        if sent < len(out):
            connection.out = out[sent:]
            if not connection.blocked:
                connection.blocked = True
                connection.deadline = now + self.request_seconds
                self.poller.modify(connection.fd, select.EPOLLOUT)
            return False
        connection.out = b""
        if connection.blocked:
            connection.blocked = False
            if not connection.partial:
                connection.deadline = now + self._keepalive
            self.poller.modify(connection.fd, select.EPOLLIN)
        if connection.closing:
            self._linger(connection, now)
            return False
        if connection.handing:
            self._hand(connection)
            return False
        return True

    def _linger(self, connection: Connection, now: float) -> None:
        """Say that no more is sent, and let the client close."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.lingered = 0
        connection.buffer = b""
        connection.deadline = now + LINGER_SECONDS

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.fd]
        connection.out = connection.buffer = b""
        connection.sock.close()
        self.nr_conns -= 1

    def _expire(self, connection: Connection, now: float) -> None:
        """Close a connection whose time is up; say so to one that sent a part of a request."""
        if connection.partial and not connection.out:
            connection.out = TIMEOUT_RESPONSE
            connection.closing = True
            self._send(connection, now)
        else:
            self._drop(connection)

    def _close_by(self, deadline: float) -> None:
        """Let the time of every connection be up by then, also of one with half a request or an untaken answer."""
        for connection in self._connections.values():
            connection.deadline = min(connection.deadline, deadline)

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Answer what has come, and close every connection.

        A client has STOP_SECONDS for the rest of a request, and LAST_SECONDS more to read that it came too late. What a
        thread works on has gunicorn's graceful time-out. Told to stop quickly, nobody has more than QUICK_SECONDS.
        """
        self._stop_listening()
        start = time.monotonic()
        while self.nr_conns:
            now, quick = time.monotonic(), self._quit_at + QUICK_SECONDS
            if now < start + STOP_SECONDS:
                self._close_by(start + STOP_SECONDS)
            if now >= min(start + STOP_SECONDS + LAST_SECONDS, quick):
                self._give_up()
            if now >= min(start + self.cfg.graceful_timeout, quick):
                break
            self._turn(0.05)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop quickly, between two turns: gunicorn's own leaves the loop wherever it is, also within an append."""
        self._quit_at = time.monotonic()
        self.cfg.worker_int(self)
        self.handle_exit(sig, frame)

    def _give_up(self) -> None:
        """Close every connection that the loop has."""
        for connection in list(self._connections.values()):
            self._drop(connection)
