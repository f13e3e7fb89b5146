"""POST and GET /visits/<page>."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from visit_counter.model.answers import CACHE_CONTROL, CONTENT_TYPE, Accepted, Answer
from visit_counter.model.pages import decode_page

blueprint = Blueprint("visits", __name__)

_PREFIX_LENGTH = len("/visits/")


@blueprint.post("/visits/<everything:page>")
def record(page: str) -> Response:
    """Count one visit."""
    del page
    return _response(current_app.extensions["visit_counter"].counter.record(_page()))


@blueprint.get("/visits/<everything:page>")
def count(page: str) -> Response:
    """Read a count."""
    del page
    return _response(current_app.extensions["visit_counter"].counter.count(_page()))


def _page() -> str:
    # From the bytes of the path: Werkzeug's decoding would put U+FFFD in the place of broken UTF-8.
    return decode_page(request.environ["PATH_INFO"].encode("latin-1")[_PREFIX_LENGTH:])


def _response(answer: Answer | Accepted) -> Response:
    response = Response(answer.to_json(), answer.status, content_type=CONTENT_TYPE)
    response.headers["Cache-Control"] = CACHE_CONTROL
    return response
