"""Requests that wait for a shard: threads of their own answer them, and the loop sends the answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from visit_counter.server.thread import HandingWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from visit_counter.counting.counter import VisitCounter
    from visit_counter.model.answers import Outcome
    from visit_counter.server.connection import Connection
    from visit_counter.server.http1 import Taken

# A thread answers the requests of a turn that wait for one shard. There are several, because a shard that hangs holds
# its thread for a while.
LOAD_THREADS = 4


class WaitingWorker(HandingWorker):
    """Answers the requests of a turn that must wait for a shard, together."""

    _counter: VisitCounter

    def _prepare(self) -> None:
        super()._prepare()
        # This pool is apart from gunicorn's, so that neither Flask's requests nor slow clients hold up a read.
        self._load_pool = ThreadPoolExecutor(LOAD_THREADS, "load")

    def _write_answers(
        self, asking: list[tuple[Connection, Taken]], outcomes: Sequence[Outcome], now: float
    ) -> list[Connection]:
        """Put the answers into the connections' output; return the connections that have read another request."""
        raise NotImplementedError

    def _answer_waves(self, wave: list[Connection], sending: list[Connection], now: float) -> None:
        """Answer what the connections of `wave` have read, then send to all of `sending`."""
        raise NotImplementedError

    def _let_wait(self, waiting: list[tuple[Connection, Taken]], now: float) -> None:
        """Answer requests that must wait for a shard, in a thread for each shard, since one shard may hang."""
        groups: dict[str, list[tuple[Connection, Taken]]] = {}
        for one in waiting:
            connection, (target, _, _) = one
            connection.waits_since = now
            # Earlier answers are held back and sent together with this one, in order.
            connection.held, connection.out = connection.out, b""
            self._release(connection)
            groups.setdefault(self._counter.owner(target.asks[0].page), []).append(one)
        for mine in groups.values():
            asks = [ask for _, (target, _, _) in mine for ask in target.asks]
            future = self._load_pool.submit(self._counter.answer, asks, wait=True)
            future.add_done_callback(partial(self.method_queue.defer, self._waited, mine))

    def _waited(self, asking: list[tuple[Connection, Taken]], done: Future[list[Outcome]]) -> None:
        """Send the answers of requests that waited."""
        now = time.monotonic()
        for connection, _ in asking:
            connection.out, connection.held = connection.held, b""
            self._adopt(connection)
        connections = [connection for connection, _ in asking]
        if done.cancelled() or done.exception():
            self.log.error("Error while waiting for a shard", exc_info=None if done.cancelled() else done.exception())
            for connection in connections:
                self._drop(connection)
        else:
            more = self._write_answers(asking, done.result(), now)
            for connection in connections:
                connection.waits_since = None
            self._answer_waves(more, connections, now)
