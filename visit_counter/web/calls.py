"""Asking the counter for a call, and what several calls share."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from flask import Response, current_app, request

from visit_counter.errors import RequestError
from visit_counter.model.pages import decode_page

if TYPE_CHECKING:
    from visit_counter.model.calls import Asked, Reply


MAX_QUERY_FIELDS = 1000


def respond(asked: Asked) -> Response:
    """Ask the counter, and return the answer of the call."""
    return response(asked.reply(current_app.extensions["visit_counter"].counter.answer(asked.asks, wait=True)))


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
