"""A steady load of visits and reads over keep-alive connections, that knows which counts can be right.

One thread, one epoll: requests are sent when they are due, whether or not those before were answered, and a latency
counts from the moment its request was due. So a service that stalls cannot make its own figures look better.
"""

from __future__ import annotations

import json
import select
import time
from collections import deque
from random import Random
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

from tests.support.http_client import Asker
from tests.support.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Far more than a service that answers needs, so that a hung one is not spared.
MAX_CONNECTIONS = 400


class Sample(NamedTuple):
    """One answer. `due` and `seconds` are of the monotonic clock; `status` is 0 where the connection was lost."""

    due: float
    seconds: float
    method: str
    page: str
    status: int
    visits: int


class _Client(Asker):
    """One connection and the request it waits for."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.sock.setblocking(False)
        self.due = 0.0
        self.method = self.page = ""
        self.lowest = 0

    def send(self, due: float, method: str, page: str, lowest: int) -> None:
        self.due, self.method, self.page, self.lowest = due, method, page, lowest
        self.sock.send(f"{method} /visits/{page} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def answer(self) -> tuple[int, int] | None:
        """Return (status, visits) once the answer is whole, (0, 0) where the connection ended; else None."""
        try:
            answer = self.receive()
        except BlockingIOError:
            return None
        except OSError:
            return 0, 0
        if answer is None:
            return None
        status, body = answer
        return status, int(json.loads(body).get("visits") or 0) if status in (200, 202) else 0


class Load:
    """`rate` requests a second for pages drawn from `pages`, of which `posts` (0 to 1) count a visit."""

    def __init__(self, port: int, pages: Sequence[str], *, rate: float, posts: float = 0.5, seed: int = 1) -> None:
        self.oracle = Oracle()
        self.samples: deque[Sample] = deque(maxlen=1_000_000)
        self._port, self._pages, self._rate, self._posts = port, pages, rate, posts
        self._random = Random(seed)
        self._poller = select.epoll()
        self._busy: dict[int, _Client] = {}
        self._free: list[_Client] = []

    def make_known(self, enough: Callable[[], bool]) -> None:
        """Open connections until it is `enough`, and read every page once over each, so that all workers know them."""
        while not enough():
            assert len(self._free) < MAX_CONNECTIONS, "one worker takes all connections"
            self._free.append(self._connect())
            self._round(self._pages[:1])
        unknown = list(self._pages)
        while unknown:
            self.samples.clear()
            self._round(unknown)
            # Refused while a shard was taken to be down: a machine with too much to do.
            unknown = sorted({sample.page for sample in self.samples if sample.status != 200})
        self.samples.clear()

    def _round(self, pages: Sequence[str]) -> None:
        """Read every page over every connection, all at once, and wait for the answers."""
        for page in pages:
            clients, self._free = self._free, []
            for client in clients:
                self._send(client, time.monotonic(), "GET", page)
            while self._busy:
                self._collect(1.0)

    def run(self, seconds: float, every: Callable[[], object] | None = None, every_seconds: float = 1.0) -> bool:
        """Keep up the load for so long, then wait for the last answers; tell whether `every` ended it earlier.

        A thread calls `every` now and then; once that returns True, the load is over.
        """
        over = Event()
        watcher = Thread(target=_call_until, args=(over, every or (lambda: None), every_seconds), daemon=True)
        watcher.start()
        start = due = time.monotonic()
        while due < start + seconds and not over.is_set():
            now = time.monotonic()
            while due <= now:
                self._request(due)
                due += 1 / self._rate
            self._collect(max(0.0, min(0.05, due - now)))
        ended_early = over.is_set()
        over.set()
        watcher.join()
        deadline = time.monotonic() + 10
        while self._busy and time.monotonic() < deadline:
            self._collect(0.05)
        return ended_early

    def close(self) -> None:
        """Close the connections."""
        for client in [*self._free, *self._busy.values()]:
            client.sock.close()
        self._poller.close()

    def _connect(self) -> _Client:
        client = _Client(self._port)
        self._poller.register(client.sock.fileno(), select.EPOLLIN)
        return client

    def _request(self, due: float) -> None:
        method = "POST" if self._random.random() < self._posts else "GET"
        page = self._random.choice(self._pages)
        if self._free:
            # Any of them: the kernel gave them to different workers.
            at = self._random.randrange(len(self._free))
            self._free[at], self._free[-1] = self._free[-1], self._free[at]
        elif len(self._busy) < MAX_CONNECTIONS:
            try:
                self._free.append(self._connect())
            except OSError:
                self.samples.append(Sample(due, time.monotonic() - due, method, page, 0, 0))
                return
        else:
            self.samples.append(Sample(due, time.monotonic() - due, method, page, 0, 0))
            return
        self._send(self._free.pop(), due, method, page)

    def _send(self, client: _Client, due: float, method: str, page: str) -> None:
        if method == "POST":
            self.oracle.begin(page, 1)
        try:
            client.send(due, method, page, self.oracle.lowest(page))
        except OSError:
            self._finish(client, 0, 0)
            return
        self._busy[client.sock.fileno()] = client

    def _collect(self, timeout_seconds: float) -> None:
        for number, _ in self._poller.poll(timeout_seconds):
            client = self._busy.get(number)
            if client is None:
                self._drop_idle(number)
                continue
            answer = client.answer()
            if answer is not None:
                del self._busy[number]
                self._finish(client, *answer)

    def _drop_idle(self, number: int) -> None:
        """Forget a connection that the server closed while nothing was asked."""
        for client in [client for client in self._free if client.sock.fileno() == number]:
            self._free.remove(client)
            client.sock.close()

    def _finish(self, client: _Client, status: int, visits: int) -> None:
        if client.method == "POST" and status in (200, 202):
            self.oracle.acknowledge(client.page, 1)
        elif client.method == "POST" and status:
            self.oracle.refused(client.page, 1)
        if status == 200:
            self.oracle.judge(client.page, visits, client.lowest)
        seconds = time.monotonic() - client.due
        self.samples.append(Sample(client.due, seconds, client.method, client.page, status, visits))
        if status and not client.is_closing:
            self._free.append(client)
        else:
            client.sock.close()


def _call_until(over: Event, every: Callable[[], object], every_seconds: float) -> None:
    while not over.wait(every_seconds):
        if every() is True:
            over.set()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
