"""What a client is told when something goes wrong: `application/problem+json` (RFC 9457). Pure."""

from __future__ import annotations

import json
from http import HTTPStatus
from math import ceil
from typing import NamedTuple

from visit_counter.errors import (
    BatchError,
    CountUnknownError,
    JournalError,
    OriginError,
    RateError,
    RequestError,
    StoreError,
    UncertainError,
    VisitCounterError,
)

_RETRY_AFTER_SECONDS = "1"
# The first class that matches gives the status.
_STATUS = (
    (RequestError, HTTPStatus.BAD_REQUEST),
    (OriginError, HTTPStatus.FORBIDDEN),
    (RateError, HTTPStatus.TOO_MANY_REQUESTS),
    (JournalError, HTTPStatus.SERVICE_UNAVAILABLE),
    (UncertainError, HTTPStatus.SERVICE_UNAVAILABLE),
    (CountUnknownError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class Problem(NamedTuple):
    """A response: its status, its header fields but Content-Length, and its body."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


def problem(status: int, detail: str, **more: object) -> Problem:
    """Return a problem document; `title` is the status's own name, `more` are members of its own."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    fields: tuple[tuple[str, str], ...] = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields = (*fields, ("Retry-After", _RETRY_AFTER_SECONDS))
    return Problem(status, fields, json.dumps(body).encode())


def problem_of(error: VisitCounterError) -> Problem:
    """Return what a client is told about an error raised on purpose. Flask and the worker's loop use the same bytes."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    if isinstance(error, RateError):
        found = problem(status, str(error))
        return found._replace(fields=(*found.fields, ("Retry-After", str(max(1, ceil(error.wait_seconds))))))
    more = {"errors": error.errors} if isinstance(error, BatchError) and error.errors else {}
    return problem(status, str(error), **more)
