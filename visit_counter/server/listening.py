"""Accepts a worker's connections, and shares them with the other workers of the service."""

from __future__ import annotations

import select
import time
from typing import Any, ClassVar

from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

from visit_counter.server.balance import Board, Share
from visit_counter.server.connection import Connection, Phase

_LISTEN = select.EPOLLIN | getattr(select, "EPOLLEXCLUSIVE", 0)  # Linux 4.5
# How often a worker that does not listen checks for a waiting connection, and for room.
RETRY_SECONDS = 0.05
# How many connections a worker accepts in one turn if there is no other worker that could take some of them.
_ACCEPT_ALONE = 8


class ListeningWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Accepts connections. Every method runs in the loop's thread and returns at once."""

    alive: bool
    _accepting: bool
    _board: ClassVar[Board | None] = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Do as gthread does, and make the board. The master calls this before it forks, and at each reload."""
        super().check_config(cfg, log)
        ListeningWorker._board = ListeningWorker._board or Board()

    def _prepare(self) -> None:
        # gthread's selector makes several objects per event; epoll itself makes one pair.
        self.poller.close()
        self.poller: select.epoll = select.epoll()
        self.poller.register(self.method_queue.fileno(), select.EPOLLIN)
        self._listeners = {listener.fileno(): (listener, listener.getsockname()) for listener in self.sockets}
        self._keepalive = float(self.cfg.keepalive)
        self._next_check = 0.0
        self._share = Share()
        self._next_share = 0.0
        self._accept_at_once = 1

    def _adopt(self, connection: Connection) -> None:
        """Add the connection to the loop."""
        raise NotImplementedError

    def _receive(self, connection: Connection) -> bool:
        """Read from the connection; return whether the buffer may hold a request for the loop."""
        raise NotImplementedError

    def set_accept_enabled(self, enabled: bool) -> None:
        """Begin or stop to listen for connections."""
        if enabled == self._accepting:
            return
        self._accepting = enabled
        for fd, (listener, _) in self._listeners.items():
            listener.setblocking(False)
            if enabled:
                self.poller.register(fd, _LISTEN)
            else:
                self.poller.unregister(fd)

    def _queue_again(self) -> None:
        """Put this worker at the end of the kernel's queue, so that it wakes another idle worker next time.

        For each connection the kernel wakes the idle worker that has listened longest, which would always be the same
        one. Listening anew also reports a connection again whose worker was woken and then died, or could not take it.
        """
        if self._accepting:
            for fd in self._listeners:
                self.poller.unregister(fd)
                self.poller.register(fd, _LISTEN)

    def _stop_listening(self) -> None:
        """Accept the connections that are waiting already, then close the listening sockets.

        The kernel goes on taking connections on the port until every process has closed these sockets.
        """
        if self._board is not None:
            self._board.erase(self.age)
        self.set_accept_enabled(False)
        for listener, server in self._listeners.values():
            while self.nr_conns < self.worker_connections and self._accept_one(listener, server, time.monotonic()):
                pass
            listener.close()
        self._listeners.clear()

    def _accept(self, fd: int, now: float) -> list[Connection]:
        """Accept connections; return those from which a request has come already.

        A worker accepts one at a time and leaves the next to another idle worker; if it is alone, it accepts several.
        """
        listener, server = self._listeners[fd]
        ready = []
        for _ in range(self._accept_at_once):
            connection = self._accept_one(listener, server, now)
            if connection is None:
                break
            if self._receive(connection):
                ready.append(connection)
            if self.nr_conns >= self.worker_connections:
                self.set_accept_enabled(False)
                break
        self._queue_again()
        return ready

    def _accept_one(self, listener: Any, server: Any, now: float) -> Connection | None:
        """Accept a connection, if there is one."""
        try:
            sock, client = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            # There are no file descriptors, or no memory. The kernel has woken no other worker for this connection, so
            # this one tries again at the next check.
            self.log.error("Cannot accept a connection: %s", error)
            self.set_accept_enabled(False)
            self._next_check = now + RETRY_SECONDS
            return None
        self.nr_conns += 1
        sock.setblocking(False)
        connection = Connection(sock, client, server, now + DEFAULT_WORKER_DATA_TIMEOUT + self._keepalive)
        self._adopt(connection)
        return connection

    def _share_out(self, connections: list[Connection], now: float) -> None:
        """Compare the number of connections in use with the other workers, once a second."""
        if self._board is None or now < self._next_share:
            return
        self._next_share = now + 1.0
        # A connection's deadline is set when a request is answered, so it shows when that was.
        recent, reading = now + self._keepalive - 1.0, Phase.READING
        in_use = sum(1 for one in connections if one.deadline > recent and one.phase is reading)
        self._board.write(self.age, in_use, now)
        others = self._board.others(self.age, now)
        self._share.update(in_use, others)
        self._accept_at_once = 1 if others else _ACCEPT_ALONE

    def _accept_or_yield(self, now: float) -> list[Connection]:
        """Listen if there is room; return as `_accept` does.

        A worker with more than its share of the connections does not listen, so the kernel wakes another one for a new
        connection. At each check it accepts those that no other worker has accepted.
        """
        has_room = self.nr_conns < self.worker_connections
        self.set_accept_enabled(has_room and not self._share.is_exceeded)
        self._queue_again()
        if not has_room or self._accepting:
            return []
        return [connection for fd in self._listeners for connection in self._accept(fd, now)]
