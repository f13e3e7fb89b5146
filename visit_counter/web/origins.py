"""CORS (Fetch, section 3.3): which other sites' pages may count and read, on every answer, errors and preflights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask, Response, request

from visit_counter.errors import OriginError

if TYPE_CHECKING:
    from visit_counter.model.origins import Origins

_PREFLIGHT_FIELDS = (
    ("Access-Control-Allow-Methods", "GET, HEAD, POST"),
    ("Access-Control-Allow-Headers", "Content-Type, Idempotency-Key"),
    # Chromium keeps it for two hours at most, Firefox for a day.
    ("Access-Control-Max-Age", "86400"),
)


def register(app: Flask, origins: Origins) -> None:
    """Make the application refuse visits from pages of other origins, and say who may read each answer."""

    def refuse() -> Response | None:
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response = Response(status=204)
            if origins.allows(origin):
                response.headers.extend(dict(_PREFLIGHT_FIELDS))
            return response
        if request.method == "POST" and not origins.allows(origin):
            raise OriginError(origin or "")
        return None

    def allow(response: Response) -> Response:
        for name, value in origins.fields(request.headers.get("Origin")):
            if name == "Vary":
                response.vary.add(value)
            else:
                response.headers[name] = value
        return response

    app.before_request(refuse)
    app.after_request(allow)
