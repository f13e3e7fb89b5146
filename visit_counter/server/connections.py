"""Reads from the connections of the worker's loop, sends to them, and closes them. `worker` answers their requests.

While a request is incomplete, `Connection.awaits` decides after each read whether to judge it anew.
"""

from __future__ import annotations

import math
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from visit_counter.server.connection import Next, Phase
from visit_counter.server.listening import ListeningWorker
from visit_counter.server.responses import TIMEOUT_RESPONSE

if TYPE_CHECKING:
    from visit_counter.server.bodies import Awaited
    from visit_counter.server.connection import Connection

READ_BYTES = 8192
# How long, and how many bytes, the loop still reads from a connection before it closes it (RFC 9112 section 9.6).
# Closing at once would reset the connection, and the client could lose the answer.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024

# How long clients still have when the worker must stop, and when it must stop quickly (SIGINT, SIGQUIT).
STOP_SECONDS = 1.0
LAST_SECONDS = 0.2
QUICK_SECONDS = 0.2

# The loop compares these for every request, and Python 3.11 looks up a member of an enum slowly.
_LINGERING, _SENDING, _READ = Phase.LINGERING, Phase.SENDING, Next.READ


class ConnectionWorker(ListeningWorker):
    """Keeps the connections in an epoll set. Every method runs in the loop's thread and returns at once."""

    # How long a client may take to send one request or to take its answer; gunicorn has no setting for it.
    request_seconds = 30.0

    _quit_at = math.inf  # when a signal asked the worker to stop quickly, in monotonic seconds

    def _prepare(self) -> None:
        super()._prepare()
        self._connections: dict[int, Connection] = {}  # the loop's own; threads may have others
        # gthread's `handle_request` compares the length of this with `max_keepalived`.
        self.keepalived_conns = self._connections

    def _hand(self, connection: Connection) -> None:
        """Give the connection to a thread, once all of its output is sent."""
        raise NotImplementedError

    def _turn(self, timeout_seconds: float) -> None:
        """Wait for events, and do everything that they allow without waiting."""
        raise NotImplementedError

    def _adopt(self, connection: Connection) -> None:
        """Add the connection to the loop."""
        connection.phase = Phase.READING
        self._connections[connection.fd] = connection
        self.poller.register(connection.fd, select.EPOLLIN)

    def _release(self, connection: Connection) -> None:
        """Take the connection out of the loop until it is adopted again."""
        connection.phase = Phase.AWAY
        del self._connections[connection.fd]
        self.poller.unregister(connection.fd)

    def _receive(self, connection: Connection) -> bool:
        """Read from the connection; return whether the buffer may hold a request for the loop."""
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(connection)
            return False
        if connection.phase is _LINGERING:
            connection.thrown_away += len(data)
            if not data or connection.thrown_away > LINGER_BYTES:
                self._drop(connection)
            return False
        if not data:
            if connection.buffer:
                self._hand(connection)  # gunicorn decides how to answer half a request
            else:
                self._drop(connection)
            return False
        connection.buffer += data
        return connection.awaits is None or self._has_come(connection, connection.awaits)

    def _has_come(self, connection: Connection, awaits: Awaited) -> bool:
        """Return whether the loop should judge an incomplete request anew; hand over one that is not ordinary."""
        if not awaits.is_here(connection.buffer):
            return False
        if not awaits.is_ordinary:
            self._hand(connection)
        return awaits.is_ordinary

    def _send(self, connection: Connection, now: float) -> bool:
        """Send as much as the socket takes; return whether that was all and the loop may read on."""
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
            if connection.phase is not Phase.SENDING:
                connection.phase = Phase.SENDING
                connection.deadline = now + self.request_seconds
                self.poller.modify(connection.fd, select.EPOLLOUT)
            return False
        connection.out = b""
        if connection.phase is _SENDING:
            connection.phase = Phase.READING
            if connection.awaits is None:
                connection.deadline = now + self._keepalive
            self.poller.modify(connection.fd, select.EPOLLIN)
        if connection.next is _READ:
            return True
        if connection.next is Next.CLOSE:
            self._linger(connection, now)
        else:
            self._hand(connection)
        return False

    def _linger(self, connection: Connection, now: float) -> None:
        """Shut down the sending side, and wait for the client to close."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.phase = Phase.LINGERING
        connection.awaits = None
        connection.buffer = b""
        connection.deadline = now + LINGER_SECONDS

    def _drop(self, connection: Connection) -> None:
        del self._connections[connection.fd]
        connection.out = connection.buffer = b""
        connection.sock.close()
        self.nr_conns -= 1

    def _expire(self, connection: Connection, now: float) -> None:
        """Close a connection whose time is up; if half a request has come, answer it with 408 first."""
        if connection.awaits is not None and not connection.out:
            connection.out = TIMEOUT_RESPONSE
            connection.next = Next.CLOSE
            self._send(connection, now)
        else:
            self._drop(connection)

    def _close_by(self, deadline: float) -> None:
        """Let no deadline be later than this one, also if half a request has come, or half an answer was taken."""
        for connection in self._connections.values():
            connection.deadline = min(connection.deadline, deadline)

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Answer the requests that have come, and close every connection.

        A client has STOP_SECONDS to send the rest of a request, and LAST_SECONDS more to read the answer 408. A request
        in a thread has gunicorn's graceful time-out. If the worker must stop quickly, all have only QUICK_SECONDS.
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
        """Stop quickly, after the present turn: gunicorn's own handler leaves the loop at once, even in an append."""
        self._quit_at = time.monotonic()
        self.cfg.worker_int(self)
        self.handle_exit(sig, frame)

    def _give_up(self) -> None:
        """Close every connection of the loop."""
        for connection in list(self._connections.values()):
            self._drop(connection)
