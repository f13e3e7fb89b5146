"""GET /health: for load balancers, container health checks and people."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, jsonify

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> tuple[Response, int]:
    """Tell whether visits are accepted and which shards answer."""
    body, status = current_app.extensions["visit_counter"].health()
    response = jsonify(body)
    response.headers["Cache-Control"] = "no-store"
    return response, status
