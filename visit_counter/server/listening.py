"""How a worker comes by connections: it accepts them, and shares them with the other workers of the service."""

from __future__ import annotations

import select
import time
from typing import Any, ClassVar

from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

from visit_counter.server.balance import Board, Share
from visit_counter.server.connection import Connection, Phase

_LISTEN = select.EPOLLIN | getattr(select, "EPOLLEXCLUSIVE", 0)  # Linux 4.5
# How soon a worker that does not listen tries whether there is a connection, or room for one.
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
        """Do as gthread does. The master calls this before it forks workers, and again when it reloads."""
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
        """Let the loop have the connection."""
        raise NotImplementedError

    def _receive(self, connection: Connection) -> bool:
        """Read what there is; return whether the loop can take a request from it."""
        raise NotImplementedError

    def set_accept_enabled(self, enabled: bool) -> None:
        """Listen, or do not."""
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

        One at a time, and the next is left to another worker that is idle; several if there is no other.
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
            # Out of file descriptors or memory: the next check listens again. The kernel has woken nobody else for it.
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
        """Compare with the other workers, once a second, how many connections are in use."""
        if self._board is None or now < self._next_share:
            return
        self._next_share = now + 1.0
        # The deadline of a connection that waits for a request tells when its last one was answered.
        recent, reading = now + self._keepalive - 1.0, Phase.READING
        in_use = sum(1 for one in connections if one.deadline > recent and one.phase is reading)
        self._board.write(self.age, in_use, now)
        others = self._board.others(self.age, now)
        self._share.update(in_use, others)
        self._accept_at_once = 1 if others else _ACCEPT_ALONE

    def _accept_or_yield(self, now: float) -> list[Connection]:
        """Listen where there is room; return as `_accept` does.

        With more than its share of the connections, a worker does not listen: the kernel wakes another one for a new
        connection. It takes what nobody else has taken until the next check.
        """
        has_room = self.nr_conns < self.worker_connections
        self.set_accept_enabled(has_room and not self._share.is_exceeded)
        self._queue_again()
        if not has_room or self._accepting:
            return []
        return [connection for fd in self._listeners for connection in self._accept(fd, now)]
