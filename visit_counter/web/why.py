"""GET /why: whether a visit from this browser, address and origin would be counted, and if not, by which rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, Response, current_app, jsonify, request

from visit_counter.errors import OriginError, RateError, RequestError
from visit_counter.model.pages import decode_page
from visit_counter.statistics.guards import Ignored
from visit_counter.web.calls import query_fields, sent

if TYPE_CHECKING:
    from visit_counter.runtime.service import Service
    from visit_counter.statistics.guards import Sent

blueprint = Blueprint("why", __name__)

_DETAILS = {
    Ignored.OWN: "visits from this address are not counted (VISITS_IGNORE_ADDRESSES)",
    Ignored.REPEAT: "a visit of this visitor to this page was counted a moment ago (VISITS_REPEAT_SECONDS)",
}


@blueprint.get("/why")
def why() -> Response:
    """Tell what would become of a visit."""
    pages = [value for name, value in query_fields(request.query_string) if name == b"page"]
    if len(pages) != 1:
        raise RequestError("the query must name one page, as page=a")
    page, by = decode_page(pages[0]), sent()
    service: Service = current_app.extensions["visit_counter"]
    reason, detail = _refusal(service, page, by)
    body: dict[str, object] = {"page": page, "counted": not reason, "client": service.guards.client(by)}
    if reason:
        body |= {"reason": reason, "detail": detail}
    if service.guards.is_hidden(by):
        body["hint"] = (
            f"{by.peer} names another client in X-Forwarded-For and is not believed;"
            " if it is your proxy, list it in VISITS_TRUSTED_PROXIES"
        )
    response = jsonify(body)
    response.headers["Cache-Control"] = "no-store"
    return response


def _refusal(service: Service, page: str, by: Sent) -> tuple[str, str]:
    """Return the rule by which a visit would not be counted, and what it says; "" for none."""
    origin = request.headers.get("Origin")
    if not service.origins.allows(origin):
        return "origin", str(OriginError(origin or ""))
    try:
        ignored = service.guards.why(page, by)
    except RateError as error:
        return "rate", str(error)
    return (ignored.value, _DETAILS[ignored]) if ignored else ("", "")
