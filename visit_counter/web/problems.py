"""Errors that Flask meets as HTTP answers: always a problem document, never HTML, never a traceback."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from visit_counter.errors import VisitCounterError
from visit_counter.model.problems import Problem, problem, problem_of
from visit_counter.web.bodies import BrokenBody

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)


class PlainResponse(Response):
    """Flask's answers without a type of their own, as to OPTIONS, do not claim to be HTML."""

    default_mimetype = "text/plain"


class LastResponse(PlainResponse):
    """An answer after which the connection ends, because it is not known where the next request begins."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Tell gunicorn's response object too, since gunicorn drops a Connection field that an application sets."""
        force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
        if force_close:
            force_close()
        return super().__call__(environ, start_response)


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
