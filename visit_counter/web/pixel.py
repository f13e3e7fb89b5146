"""GET /pixel/<page>.gif: an image of one transparent pixel that counts a visit, where no script may run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, Response, request

from visit_counter.errors import VisitCounterError
from visit_counter.model.answers import Ask
from visit_counter.model.calls import NEVER_KEPT, Asked, Reply
from visit_counter.model.problems import problem_of
from visit_counter.web.calls import page_after, respond

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.model.answers import Outcome

blueprint = Blueprint("pixel", __name__)

# 1 x 1, transparent: 43 bytes.
PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
_FIELDS = (("Content-Type", "image/gif"), *NEVER_KEPT, ("Cross-Origin-Resource-Policy", "cross-origin"))


@blueprint.get("/pixel/<everything:page>.gif")
def pixel(page: str) -> Response:
    """Count one visit and send the pixel."""
    del page
    return respond(asked(page_after("/pixel/", ".gif"), counts=request.method == "GET"))


def asked(page: str, *, counts: bool) -> Asked:
    """Return what the pixel of a page asks; without `counts` nothing, as for HEAD."""
    return Asked((Ask(True, page),) if counts else (), _reply)


def _reply(outcomes: Sequence[Outcome]) -> Reply:
    for outcome in outcomes:
        if isinstance(outcome, VisitCounterError):
            return Reply(*problem_of(outcome))
    return Reply(200, _FIELDS, PIXEL)
