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

from visit_counter.counting.counter import VisitCounter
from visit_counter.errors import JournalError, UncertainError
from visit_counter.model.answers import CACHE_CONTROL, Accepted, Answer, Ask, Outcome
from visit_counter.model.origins import Origins
from visit_counter.web import origins, problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.model.visits import Visit


def _wait_for(name: str) -> None:
    while not Path(name).exists():
        threading.Event().wait(0.01)


class StubCounter(VisitCounter):
    """Counts in memory.

    Pages under `wait/` always have to wait, and those under `wait/hold/NAME` until there is a file of this name; a
    visit of `refuse` is refused, one of `uncertain` may be counted; the page `break` breaks `answer`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self.calls = 0
        path = os.environ.get("STUB_JOURNAL", os.devnull)
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def owner(self, page: str) -> str:
        """Say that pages with other beginnings wait apart."""
        return page[:10]

    def answer(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Outcome]:
        """Answer all of them with one write, as the real one does."""
        self.calls += 1
        if Ask(True, "break") in asks:
            raise RuntimeError("asked to break")
        for ask in asks:
            if wait and ask.page.startswith("wait/hold/"):
                _wait_for(ask.page.removeprefix("wait/hold"))
        lines = []
        for ask in asks:
            if ask.is_visit:
                encoded = ask.page.encode()
                lines.append(b"%08x\t1\t%b\n" % (zlib.crc32(encoded), encoded))
        os.lseek(self._journal, 0, os.SEEK_END)
        if lines:
            os.write(self._journal, b"".join(lines))
        with self._lock:
            return [self._outcome(ask, wait) for ask in asks]

    def record_all(self, visits: Sequence[Visit]) -> int:
        return len([self.record(page, number) for page, number in visits])

    def _outcome(self, ask: Ask, wait: bool) -> Outcome:
        if ask.page.startswith("wait/") and not wait:
            return None
        if ask.is_visit and ask.page == "refuse":
            return JournalError("the journal is full")
        visits = self._counts.get(ask.page, 0) + ask.is_visit
        self._counts[ask.page] = visits
        if ask.is_visit and ask.page == "uncertain":
            return UncertainError("the visit may be counted")
        return Answer(visits, "stub")


class StubService:
    """What the worker finds in `app.extensions`."""

    def __init__(self) -> None:
        self.counter = StubCounter()
        self.origins = Origins()

    def start(self) -> None:
        """Nothing to start."""


def create_app() -> Flask:
    app = Flask(__name__)
    service = StubService()
    app.extensions["visit_counter"] = service
    problems.register(app)
    origins.register(app, service.origins)

    def respond(answer: Answer | Accepted) -> Response:
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
