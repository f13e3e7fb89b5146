"""POST and GET /visits/<page>."""

from __future__ import annotations

from flask import Blueprint, Response

from visit_counter.model.answers import Ask
from visit_counter.model.calls import Asked
from visit_counter.web.calls import page_after, reply_hot, respond

blueprint = Blueprint("visits", __name__)


@blueprint.post("/visits/<everything:page>")
def record(page: str) -> Response:
    """Count one visit."""
    del page
    return respond(Asked((Ask(True, page_after("/visits/")),), reply_hot))


@blueprint.get("/visits/<everything:page>")
def count(page: str) -> Response:
    """Read a count."""
    del page
    return respond(Asked((Ask(False, page_after("/visits/")),), reply_hot))
