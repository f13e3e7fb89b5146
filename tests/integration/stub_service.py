"""A service small enough to see through: the routes, with counts in memory, and a journal that only grows.

What it knows of the real one is the interface that the worker uses.
"""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from visit_counter.answers import CACHE_CONTROL, Answer, Ask

if TYPE_CHECKING:
    from collections.abc import Sequence


def _wait_for(name: str) -> None:
    while not Path(name).exists():
        threading.Event().wait(0.01)


class StubCounter:
    """Counts in memory.

    Pages under `wait/` are never ready, so that they go through Flask; those under `learn/` are not before `learn` was
    called; the page `break` breaks `answer_ready`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._learnt: set[str] = set()
        self.calls = 0
        path = os.environ.get("STUB_JOURNAL", os.devnull)
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def record(self, page: str) -> Answer:
        """Count one visit."""
        with self._lock:
            self._counts[page] = visits = self._counts.get(page, 0) + 1
        return Answer(visits, "stub")

    def count(self, page: str) -> Answer:
        """Read a count."""
        return Answer(self._counts.get(page, 0), "stub")

    def learn(self, pages: Sequence[str]) -> None:
        """Have these pages ready; `learn/hold/NAME` once there is a file of this name."""
        for page in pages:
            if page.startswith("learn/hold/"):
                _wait_for(page.removeprefix("learn/hold"))
        self._learnt.update(pages)

    def answer_ready(self, requests: Sequence[Ask]) -> list[Answer | None]:
        """Answer all of them with one write, as the real one does."""
        self.calls += 1
        if Ask(True, "break") in requests:
            raise RuntimeError("asked to break")
        lines = []
        for ask in requests:
            if ask.is_visit:
                encoded = ask.page.encode()
                lines.append(b"%08x\t1\t%b\n" % (zlib.crc32(encoded), encoded))
        os.lseek(self._journal, 0, os.SEEK_END)
        if lines:
            os.write(self._journal, b"".join(lines))
        answers: list[Answer | None] = []
        counts = self._counts
        with self._lock:
            for ask in requests:
                page = ask.page
                if page.startswith("wait/") or (page.startswith("learn/") and page not in self._learnt):
                    answers.append(None)
                    continue
                visits = counts.get(page, 0)
                if ask.is_visit:
                    visits += 1
                    counts[page] = visits
                answers.append(Answer(visits, "stub"))
        return answers


class StubService:
    """What the worker finds in `app.extensions`."""

    def __init__(self) -> None:
        self.counter = StubCounter()

    def start(self) -> None:
        """Nothing to start."""


def create_app() -> Flask:
    app = Flask(__name__)
    service = StubService()
    app.extensions["visit_counter"] = service

    def respond(answer: Answer) -> Response:
        response = Response(answer.to_json(), answer.status, mimetype="application/json")
        response.headers["Cache-Control"] = CACHE_CONTROL
        return response

    @app.post("/visits/<path:page>")
    def visit(page: str) -> Response:
        return respond(service.counter.record(page))

    @app.get("/visits/<path:page>")
    def count(page: str) -> Response:
        return respond(service.counter.count(page))

    @app.get("/calls")
    def calls() -> Response:
        return Response(str(service.counter.calls))

    @app.get("/hold/<path:name>")
    def hold(name: str) -> Response:
        """Answer once a file of this name is there."""
        _wait_for(f"/{name}")
        return Response("held")

    @app.get("/long")
    def long() -> Response:
        return Response(b"x" * 20_000_000)

    @app.post("/echo")
    def echo() -> Response:
        return Response(request.get_data(), mimetype="application/octet-stream")

    return app
