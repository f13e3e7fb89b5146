"""Errors as HTTP answers: `application/problem+json` (RFC 9457), never HTML, never a traceback."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from visit_counter.bodies import BrokenBody
from visit_counter.errors import (
    CountUnknownError,
    JournalError,
    PageError,
    StoreError,
    UncertainError,
    VisitCounterError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = "1"
# The first class that matches gives the status.
_STATUS = (
    (PageError, HTTPStatus.BAD_REQUEST),
    (JournalError, HTTPStatus.SERVICE_UNAVAILABLE),
    (UncertainError, HTTPStatus.SERVICE_UNAVAILABLE),
    (CountUnknownError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class PlainResponse(Response):
    """An answer without a type of its own, as Flask's to OPTIONS, does not claim to be HTML."""

    default_mimetype = "text/plain"


class LastResponse(PlainResponse):
    """An answer after which the connection ends, because it is not known where the next request begins."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Tell gunicorn too, which drops a Connection field that an application gives: its response object does it."""
        force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
        if force_close:
            force_close()
        return super().__call__(environ, start_response)


class Problem(NamedTuple):
    """A response: its status, its header fields but Content-Length, and its body."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


def problem(status: int, detail: str) -> Problem:
    """Return a problem document; `title` is the status's own name."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    fields: tuple[tuple[str, str], ...] = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields = (*fields, ("Retry-After", _RETRY_AFTER_SECONDS))
    return Problem(status, fields, json.dumps(body).encode())


def problem_of(error: VisitCounterError) -> Problem:
    """Return what a client is told of an error raised on purpose; Flask and the worker's loop say the same."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    return problem(status, str(error))


def register(app: Flask) -> None:
    """Make the application answer every error with a problem document."""
    app.register_error_handler(VisitCounterError, _refused)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _response(document: Problem, kind: type[PlainResponse] = PlainResponse) -> PlainResponse:
    response = kind(document.body, document.status)
    for name, value in document.fields:
        response.headers[name] = value
    return response


def _refused(error: VisitCounterError) -> Response:
    return _response(problem_of(error))


def _http_error(error: HTTPException) -> Response:
    kind = LastResponse if isinstance(error, (BrokenBody, RequestEntityTooLarge)) else PlainResponse
    response = _response(problem(error.code or 500, error.description or ""), kind)
    for name, value in error.get_headers():
        # Allow, Location and the like belong to the answer; the type and length are the problem's own.
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return _response(problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of the service; its log says more"))
