"""A gunicorn worker whose loop answers the two hot calls itself; gunicorn and Flask answer everything else.

One thread runs an epoll loop. A turn of it:

1. wait until connections have something to read;
2. read from all of them, and take an ordinary request (`visit_counter.server.http1`) off each;
3. ask `VisitCounter.answer` for all of them at once: one journal append for the whole turn;
4. send the answers, and the refusals.

A request that must wait for a shard leaves the loop. A thread reads the counts that all such requests of the turn lack,
and answers them. A request that is not ordinary goes with its connection to a thread of another pool, where gunicorn's
`gthread` handles it: header policy, limits, refusals, hooks and errors are gunicorn's own. The loop hands a request
over only once it is complete (`Awaited`), and sends the part of the answer that the client does not take at once. So
the threads never wait for clients, and neither Flask nor a slow client holds up the reading of counts. While a
connection is away, the loop does not read from it, so pipelined requests are answered in order.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from gunicorn import SERVER, config, glogging, util

from visit_counter.errors import VisitCounterError
from visit_counter.model.answers import Answer
from visit_counter.model.calls import Reply
from visit_counter.model.origins import Origins
from visit_counter.model.problems import problem_of
from visit_counter.server.as_gunicorn import limits_of, log_access, unsupported
from visit_counter.server.connection import Next
from visit_counter.server.http1 import RequestReader, Verdict, sent_of
from visit_counter.server.listening import RETRY_SECONDS
from visit_counter.server.responses import ANSWER_FIELDS, CONTINUE_RESPONSE, Heads, status_line
from visit_counter.server.waiting import WaitingWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.counting.counter import VisitCounter
    from visit_counter.model.answers import Accepted, Ask, Outcome
    from visit_counter.model.origins import Fields
    from visit_counter.model.problems import Problem
    from visit_counter.server.connection import Connection
    from visit_counter.server.http1 import Taken


class VisitWorker(WaitingWorker):
    """`worker_class = "visit_counter.server.worker.VisitWorker"`."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Exit with one clear line if the configuration asks for something that this worker does not support."""
        super().check_config(cfg, log)
        wrong = unsupported(cfg)
        if wrong:
            log.error("VisitWorker does not support %s; use worker_class = 'gthread'", ", ".join(wrong))
            sys.exit(1)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until this worker must stop, then finish the requests under way."""
        self._prepare()
        self.set_accept_enabled(True)
        while self.alive:
            self._turn(1.0 if self._accepting else RETRY_SECONDS)
        self._finish()
        self.tpool.shutdown(wait=False)
        self._load_pool.shutdown(wait=False, cancel_futures=True)
        # method_queue stays open: a thread that ends later writes to its file number, which another file could have.
        self.poller.close()

    def _prepare(self) -> None:
        super()._prepare()
        counter = self._find_counter()
        origins = Origins() if counter is None else self.wsgi.extensions["visit_counter"].origins
        # If not all origins may count, Flask judges each request with an `Origin`: a page of another site may send it.
        special = () if origins.are_all else (b"origin",)
        calls = None if counter is None else self.wsgi.extensions.get("visit_counter_calls")
        find_call = calls.find if calls else None
        self._reader = RequestReader(limits_of(self.cfg), hot=counter is not None, special=special, find_call=find_call)
        self._judge = calls.judge if calls and calls.are_guarded else None
        self._origin_fields = origins.fields(None)
        if counter is not None:  # else no request is ordinary, so the loop never uses a counter
            self._counter = counter
        self._logs_access = self.log.access_log_enabled or type(self.log).access is not glogging.Logger.access

    def _find_counter(self) -> VisitCounter | None:
        """Return the counter that answers hot requests, or None if each must go through the WSGI application."""
        service = getattr(self.wsgi, "extensions", {}).get("visit_counter")
        hooks = self.cfg.pre_request is not config.PreRequest.default or (
            self.cfg.settings["post_request"].get() is not config.PostRequest.default
        )
        counter: VisitCounter | None = getattr(service, "counter", None)
        if service is None or counter is None or hooks or os.environ.get("SCRIPT_NAME"):
            self.log.info("Every request goes through the WSGI application")
            return None
        service.start()
        return counter

    def _turn(self, timeout_seconds: float) -> None:
        """Wait for events, and do everything that they allow without waiting."""
        events = self.poller.poll(timeout_seconds)
        now = time.monotonic()
        if now >= self._next_check:
            self._check(now)
            self._next_check = now + timeout_seconds
        connections = self._connections
        ready: list[Connection] = []
        others: list[int] = []
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                others.append(fd)
            elif connection.out:
                if self._send(connection, now) and connection.buffer:
                    ready.append(connection)
            elif self._receive(connection):
                ready.append(connection)
        # New connections come last: the kernel may give one the number of a connection that was closed above, and an
        # event of the closed one that is still in the list would then be taken for its own.
        for fd in others:
            if fd in self._listeners:
                ready += self._accept(fd, now)
            else:
                self.method_queue.run_callbacks(None)
        ready += self._resumed
        self._resumed.clear()
        if ready:
            self._answer_waves(ready, ready, now)

    def _answer_waves(self, wave: list[Connection], sending: list[Connection], now: float) -> None:
        """Answer the requests that the connections of `wave` have read, then send to all of `sending`.

        The loop answers the first request of each connection, then the second of each, and so on. It takes one at a
        time, because a request that must wait for a thread holds up those behind it on the same connection.
        """
        while wave:
            wave = self._answer(wave, now)
        for connection in sending:
            if connection.out:
                self._send(connection, now)

    def _answer(self, wave: list[Connection], now: float) -> list[Connection]:
        """Answer the first request of each connection; return the connections that have read another one."""
        take = self._reader.take
        asks: list[Ask] = []
        asking: list[tuple[Connection, Taken]] = []
        for connection in wave:
            taken = take(connection.buffer)
            if isinstance(taken, Verdict):
                self._wait_or_hand(connection, taken, now)
            else:
                if self._judge and taken[0].asks[0].is_visit:
                    taken = self._judged(connection, taken)
                asks += taken[0].asks
                asking.append((connection, taken))
        if not asking:
            return []
        found = self._ask(asks)
        if found is None:
            for connection, _ in asking:
                self._drop(connection)
            return []
        self._count_requests(len(asking))
        if self._share.surplus:
            self._dismiss_some(asking)
        return self._write_answers(asking, found, now)

    def _write_answers(
        self, asking: list[tuple[Connection, Taken]], outcomes: Sequence[Outcome], now: float
    ) -> list[Connection]:
        """Put the answers into the connections' output; return the connections that have read another request."""
        must_close = not self.alive or not self._keepalive or len(self._connections) > self.max_keepalived
        idle_until = now + self._keepalive
        heads = self._heads.ready
        found = iter(outcomes)
        more = []
        waiting = []
        for one in asking:
            connection, (target, framing, end) = one
            outcome: Outcome | Reply
            if target.reply is None:
                outcome = next(found)
            else:
                mine = tuple(islice(found, len(target.asks)))
                outcome = None if None in mine else target.reply(mine)
            if outcome is None:
                waiting.append(one)
                continue
            close = must_close or (target.http10 if framing.close is None else framing.close)
            fields: Fields
            if isinstance(outcome, Answer):
                status, fields, body = 200, ANSWER_FIELDS, outcome.to_json()
                head = heads[200, target.http10, close]
            else:
                status, fields, body = _reply_of(outcome)
                head = self._heads.kept(status, fields, http10=target.http10, close=close)
            if self._logs_access:
                fields = (*fields, *self._origin_fields, ("Content-Length", str(len(body))))
                line = status_line(status)
                log_access(self.cfg, self.log, connection, end=end, status=line, fields=fields, now=now)
            connection.out += b"%b%d\r\n\r\n%b" % (head, len(body), body)
            connection.buffer = connection.buffer[end:]
            connection.deadline = idle_until
            connection.awaits = None
            if close:
                connection.next = Next.CLOSE
            elif connection.buffer:
                more.append(connection)
        if waiting:
            self._let_wait(waiting, now)
        return more

    def _judged(self, connection: Connection, taken: Taken) -> Taken:
        """Return the request after its visit was judged: unchanged, or without the visit."""
        assert self._judge  # noqa: S101 - the caller has checked it
        target, framing, end = taken
        sent = sent_of(connection.buffer[: end - framing.body_bytes], connection.client[0])
        asked = self._judge(target.asks, target.reply, sent)
        return target._replace(asks=asked.asks, reply=asked.reply), framing, end

    def _ask(self, asks: list[Ask]) -> Sequence[Outcome] | None:
        """Return the outcomes of the asks; None after an unexpected error, when it is not known what was counted."""
        try:
            return self._counter.answer(asks)
        except Exception:
            self.log.exception("Error while counting")
            return None

    def _count_requests(self, number: int) -> None:
        self.nr += number
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def _dismiss_some(self, asking: list[tuple[Connection, Taken]]) -> None:
        """Answer some requests as if their clients had asked to close: other workers have fewer connections.

        A connection on which another request has come already is kept, so that this request is answered, too.
        """
        for at, (connection, (target, framing, end)) in enumerate(asking):
            if self._share.surplus and len(connection.buffer) == end:
                asking[at] = connection, (target, framing._replace(close=True), end)
                self._share.surplus -= 1

    def _wait_or_hand(self, connection: Connection, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.UNUSUAL:
            data = connection.buffer
            if b"\r\n\r\n" not in data and data.count(b"\n") == data.count(b"\r\n"):
                # gunicorn will refuse this head, but only once it is complete. So the loop ends it.
                connection.buffer += b"\r\n\r\n"
                connection.is_cut = True
            self._hand(connection)
            return
        if connection.awaits is None:
            connection.deadline = now + self.request_seconds
        connection.awaits = self._reader.awaited(connection.buffer)
        if connection.awaits.wants_continue and not connection.was_continued:
            connection.out += CONTINUE_RESPONSE
            connection.was_continued = True

    def _check(self, now: float) -> None:
        """Do the work that is due about once a second."""
        self.notify()
        self._heads = Heads(SERVER, util.http_date(), self._origin_fields)
        if self.alive and not self.is_parent_alive():
            self.alive = False
        connections = list(self._connections.values())
        if self.alive:
            self._share_out(connections, now)
            self._resumed += self._accept_or_yield(now)
        for connection in connections:
            if connection.deadline <= now:
                self._expire(connection, now)


def _reply_of(outcome: Accepted | VisitCounterError | Reply) -> Reply | Problem:
    if isinstance(outcome, Reply):
        return outcome
    if isinstance(outcome, VisitCounterError):
        return problem_of(outcome)
    return Reply(outcome.status, ANSWER_FIELDS, outcome.to_json())
