"""GET /badge/<page>.svg: a picture of a page's count. GET /badge/<page>.json: the same for shields.io to draw."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request

from visit_counter.model.answers import Answer, Ask
from visit_counter.model.badges import draw, look_of
from visit_counter.model.calls import NEVER_KEPT, Asked, Reply
from visit_counter.web.calls import page_after, query_fields, query_text, respond

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.model.answers import Outcome
    from visit_counter.model.badges import Look

blueprint = Blueprint("badge", __name__)

# Shown in place of a number that nobody can know now: a picture that is refused would be a broken one.
_UNKNOWN = "unknown"
_SVG_FIELDS = (
    ("Content-Type", "image/svg+xml; charset=utf-8"),
    *NEVER_KEPT,
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
)
_JSON_FIELDS = (("Content-Type", "application/json"), *NEVER_KEPT)


@blueprint.get("/badge/<everything:page>.svg")
def svg(page: str) -> Response:
    """Draw the count of a page; with `hit=1` count a visit first."""
    del page
    return respond(asked_svg(page_after("/badge/", ".svg"), request.query_string, may_count=request.method == "GET"))


@blueprint.get("/badge/<everything:page>.json")
def shields(page: str) -> Response:
    """Tell the count of a page as shields.io's endpoint badge reads it."""
    del page
    return respond(asked_json(page_after("/badge/", ".json"), request.query_string))


def asked_svg(page: str, query: bytes, *, may_count: bool) -> Asked:
    """Return what a badge asks. Raises BadgeError, RequestError."""
    fields = query_fields(query)
    look = look_of(*(query_text(fields, name) for name in (b"label", b"color", b"style")))
    is_hit = may_count and query_text(fields, b"hit") == "1"
    return Asked((Ask(is_hit, page),), partial(_reply_svg, look))


def asked_json(page: str, query: bytes) -> Asked:
    """Return what the same badge asks for shields.io. Raises BadgeError, RequestError."""
    fields = query_fields(query)
    look = look_of(query_text(fields, b"label"), query_text(fields, b"color"), None)
    return Asked((Ask(False, page),), partial(_reply_json, look))


def _message(outcomes: Sequence[Outcome]) -> str:
    [outcome] = outcomes
    return str(outcome.visits) if isinstance(outcome, Answer) else _UNKNOWN


def _reply_svg(look: Look, outcomes: Sequence[Outcome]) -> Reply:
    return Reply(200, _SVG_FIELDS, draw(look, _message(outcomes)))


def _reply_json(look: Look, outcomes: Sequence[Outcome]) -> Reply:
    message = _message(outcomes)
    # shields.io refuses keys that it does not know.
    body = {"schemaVersion": 1, "label": look.label, "message": message, "color": look.color}
    return Reply(200, _JSON_FIELDS, json.dumps(body, ensure_ascii=False).encode())
