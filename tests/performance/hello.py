"""The least a WSGI application can do: what gunicorn costs before any application runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

BODY = b"hello"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Say hello."""
    del environ
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]
