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
        body = request.get_data()  # kept: whoever asks for it later is given the same
        # Of a chunked body Werkzeug reads as much as is allowed and says nothing of what follows.
        is_more = len(body) == MAX_BODY_BYTES and bool(request.environ["wsgi.input"].read(1))
    except RequestEntityTooLarge:
        raise
    except Exception as error:
        # Of the server, whichever it is; gunicorn's are no HTTP errors and would be taken for bugs of the service.
        raise BrokenBody from error
    if is_more:
        raise RequestEntityTooLarge
