"""A steady visitor on a connection of its own, who notes how long he waits and when nobody answered him."""

from __future__ import annotations

import socket
import time
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE_SECONDS = 0.001
_TIMEOUT_SECONDS = 60.0


class Wait(NamedTuple):
    """A request that took long: when it was sent and answered, in seconds of the monotonic clock."""

    sent: float
    answered: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.answered - self.sent


class Probe:
    """Visits one page again and again, a millisecond after each answer; connects again where a connection fails.

    `slow` are the requests that took `slow_seconds` or more, `longest_gap` the longest time between two answers.
    """

    def __init__(self, port: int, slow_seconds: float = 0.005) -> None:
        self.slow: list[Wait] = []
        self.answers = 0
        self.longest_gap = 0.0
        self.gap_ended = 0.0
        self._slow_seconds = slow_seconds
        self._address = ("127.0.0.1", port)
        self._end = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        last = 0.0
        while not self._end.is_set():
            try:
                with socket.create_connection(self._address, _TIMEOUT_SECONDS) as sock:
                    while not self._end.is_set():
                        sent = time.monotonic()
                        visit(sock, b"/visits/probe", b"POST")
                        now = time.monotonic()
                        self.answers += 1
                        if now - sent >= self._slow_seconds:
                            self.slow.append(Wait(sent, now))
                        if last and now - last > self.longest_gap:
                            self.longest_gap, self.gap_ended = now - last, now
                        last = now
                        time.sleep(_PAUSE_SECONDS)
            except OSError:
                time.sleep(_PAUSE_SECONDS)


def visit(sock: socket.socket, path: bytes, method: bytes) -> None:
    """Send one request and read its answer; raises OSError for any other than 200 or 202, and for none."""
    sock.sendall(b"%b %b HTTP/1.1\r\nHost: counter.example\r\n\r\n" % (method, path))
    answer = sock.recv(65536)
    if answer[9:12] not in (b"200", b"202"):
        raise ConnectionError("no good answer")


def first_answer(port: int, path: str, runs: Callable[[], bool]) -> float:
    """Ask until the first good answer; return when it came, in seconds of the monotonic clock."""
    while runs():
        try:
            with socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS) as sock:
                visit(sock, path.encode(), b"POST" if path.startswith("/visits/") else b"GET")
                return time.monotonic()
        except OSError:
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError("the service ended instead of answering")
