"""Asking the counter for a call, and what several calls share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from flask import Response, current_app, request

from visit_counter.errors import RequestError, VisitCounterError
from visit_counter.model.answers import HOT_FIELDS, Ask
from visit_counter.model.calls import Asked, Reply
from visit_counter.model.pages import decode_page
from visit_counter.model.problems import problem_of
from visit_counter.statistics.guards import Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.model.answers import Outcome
    from visit_counter.statistics.guards import Guards, Ignored


MAX_QUERY_FIELDS = 1000


def respond(asked: Asked) -> Response:
    """Ask the counter, and return the answer of the call. Raises RateError."""
    service = current_app.extensions["visit_counter"]
    if service.guards.are_active:
        asked = guarded(asked, service.guards, sent())
    return response(asked.reply(service.counter.answer(asked.asks, wait=True)))


def guarded(asked: Asked, guards: Guards, by: Sent) -> Asked:
    """Return what a call asks once its visit was judged: if it is not counted, the count alone. Raises RateError."""
    visit = next((ask for ask in asked.asks if ask.is_visit), None)
    reason = guards.judge(visit.page, by) if visit else None
    if reason is None:
        return asked
    reads = tuple(Ask(False, ask.page) for ask in asked.asks)
    return Asked(reads, partial(_say_ignored, reason) if asked.reply is reply_hot else asked.reply)


def sent() -> Sent:
    """Return what the request says of its sender."""
    fields = request.headers
    return Sent(request.remote_addr or "", ",".join(fields.getlist("X-Forwarded-For")), fields.get("User-Agent", ""))


def reply_hot(outcomes: Sequence[Outcome]) -> Reply:
    """Return the answer of the two hot calls."""
    [outcome] = outcomes
    if isinstance(outcome, VisitCounterError):
        return Reply(*problem_of(outcome))
    assert outcome is not None  # noqa: S101 - it was asked to wait
    return Reply(outcome.status, HOT_FIELDS, outcome.to_json())


def _say_ignored(reason: Ignored, outcomes: Sequence[Outcome]) -> Reply:
    reply = reply_hot(outcomes)
    return reply._replace(body=reply.body[:-1] + b', "ignored": "%b"}' % reason.value.encode())


def response(reply: Reply) -> Response:
    """Return a reply as Flask's response."""
    found = Response(reply.body, reply.status)
    for name, value in reply.fields:
        found.headers[name] = value
    return found


def page_after(prefix: str, suffix: str = "") -> str:
    """Return the page between these parts of the request's path. Raises PageError.

    From the bytes of the path: Werkzeug's decoding would put U+FFFD in the place of broken UTF-8.
    """
    raw: bytes = request.environ["PATH_INFO"].encode("latin-1")
    return decode_page(raw[len(prefix) : len(raw) - len(suffix)])


def query_fields(query: bytes) -> list[tuple[bytes, bytes]]:
    """Return the names and values of a query, in order. Raises RequestError."""
    if query.count(b"&") >= MAX_QUERY_FIELDS:
        raise RequestError(f"the query has more than {MAX_QUERY_FIELDS} fields")
    # Latin-1 turns each byte into one character and back, also where a client has not encoded what is not ASCII.
    found = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found]


def query_text(fields: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the value of the first field of a name, None without one. Raises RequestError."""
    for found, value in fields:
        if found == name:
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise RequestError(f"{name.decode()} is not valid UTF-8") from None
    return None
