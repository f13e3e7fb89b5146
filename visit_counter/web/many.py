"""GET /visits?page=...: many counts at once. POST /visits: many visits at once."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, request

from visit_counter.errors import BatchError, PageError, RequestError
from visit_counter.model.answers import HOT_FIELDS, Answer, Ask
from visit_counter.model.calls import Asked, Reply
from visit_counter.model.pages import check_page, decode_page
from visit_counter.web.calls import query_fields, respond, response, sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.model.answers import Outcome
    from visit_counter.model.visits import Visit

blueprint = Blueprint("many", __name__)

MAX_PAGES = 100
MAX_VISITS = 500
MAX_NUMBER = 1_000_000_000


@blueprint.get("/visits")
def counts() -> Response:
    """Read the counts of many pages."""
    return respond(asked_counts(request.query_string))


@blueprint.post("/visits")
def count_all() -> Response:
    """Count many visits, all of them or none."""
    visits = visits_of(request.get_data())
    service = current_app.extensions["visit_counter"]
    if service.guards.are_active and (
        reason := service.guards.judge(None, sent(), sum(number for _, number in visits))
    ):
        return response(Reply(200, HOT_FIELDS, b'{"counted": 0, "ignored": "%b"}' % reason.value.encode()))
    counted = service.counter.record_all(visits)
    return response(Reply(200, HOT_FIELDS, b'{"counted": %d}' % counted))


def asked_counts(query: bytes) -> Asked:
    """Return what a call for many counts asks. Raises RequestError, PageError."""
    raw = [value for name, value in query_fields(query) if name == b"page"]
    if not 1 <= len(raw) <= MAX_PAGES:
        raise RequestError(f"the query names {len(raw)} pages; it must be 1 to {MAX_PAGES}, as page=a&page=b")
    pages = tuple(dict.fromkeys(decode_page(each) for each in raw))
    return Asked(tuple(Ask(False, page) for page in pages), partial(_reply, pages))


def _reply(pages: Sequence[str], outcomes: Sequence[Outcome]) -> Reply:
    found = {
        page: outcome.visits if isinstance(outcome, Answer) else None
        for page, outcome in zip(pages, outcomes, strict=True)
    }
    return Reply(200, HOT_FIELDS, json.dumps({"visits": found}, ensure_ascii=False).encode())


def visits_of(body: bytes) -> list[Visit]:
    """Return the visits that a batch holds. Raises BatchError, which names every entry that is wrong."""
    try:
        entries = json.loads(body)["visits"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BatchError('the body must be JSON like {"visits": [{"page": "a", "visits": 2}]}', {}) from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_VISITS:
        raise BatchError(f"visits must be a list of 1 to {MAX_VISITS} entries", {})
    visits, errors = [], {}
    for index, entry in enumerate(entries):
        try:
            visits.append(_visit(entry))
        except (PageError, RequestError) as error:
            errors[index] = str(error)
    if errors:
        raise BatchError(f"{len(errors)} of {len(entries)} entries are wrong; nothing was counted", errors)
    return visits


def _visit(entry: Any) -> Visit:
    if not isinstance(entry, dict) or not isinstance(entry.get("page"), str):
        raise RequestError('an entry must be like {"page": "a", "visits": 2}')
    number = entry.get("visits", 1)
    if type(number) is not int or not 1 <= number <= MAX_NUMBER:
        raise RequestError(f"visits must be a whole number from 1 to {MAX_NUMBER}")
    return check_page(entry["page"]), number
