"""How much of a request's body is read, and what becomes of one that is too large, malformed or cut short."""

from __future__ import annotations

from flask import request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from visit_counter.model.answers import MAX_BODY_BYTES


class BrokenBody(BadRequest):
    """The client's body is not what the head of its request says."""

    description = "the body is malformed or cut short"


def read_body() -> None:
    """Read what a client sends along, before anything is done for it, so that nothing is done for half a request.

    Raises BrokenBody (400), RequestEntityTooLarge (413); the connection ends with the answer, see `problems`.
    """
    try:
        body = request.get_data()  # kept: later callers get the same bytes
        # Of a chunked body, Werkzeug reads as much as is allowed, and does not say whether more follows.
        is_more = len(body) == MAX_BODY_BYTES and bool(request.environ["wsgi.input"].read(1))
    except RequestEntityTooLarge:
        raise
    except Exception as error:
        # An error of the server, whichever it is. gunicorn's are not HTTP errors, and would look like bugs of ours.
        raise BrokenBody from error
    if is_more:
        raise RequestEntityTooLarge
