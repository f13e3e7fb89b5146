"""GET /health for people and monitors; GET /live and GET /ready for orchestrators and load balancers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify

if TYPE_CHECKING:
    from visit_counter.runtime.health import Health

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> tuple[Response, int]:
    """Say what happened to visits, flushes and shards."""
    found = current_app.extensions["visit_counter"].health()
    ignored = current_app.extensions["visit_counter"].guards.figures()
    return _answer(_body(found) | ({"ignored": ignored} if ignored else {}), 503 if found.refusal else 200)


@blueprint.get("/live")
def live() -> tuple[Response, int]:
    """Say that this process answers. An orchestrator restarts one that does not."""
    return _answer({"live": True}, 200)


@blueprint.get("/ready")
def ready() -> tuple[Response, int]:
    """Say whether visits are accepted. A load balancer sends nothing to a process that refuses them."""
    refusal = current_app.extensions["visit_counter"].refusal()
    return _answer({"ready": False, "reason": refusal} if refusal else {"ready": True}, 503 if refusal else 200)


def _body(found: Health) -> dict[str, Any]:
    body: dict[str, Any] = {"api_status": found.status, "redis_status": found.shards, "profile": found.profile}
    if found.reasons:
        body["reason"] = "; ".join(found.reasons)
    return body | (vars(found.journaled) if found.journaled else {})


def _answer(body: dict[str, Any], status: int) -> tuple[Response, int]:
    response = jsonify(body)
    response.headers["Cache-Control"] = "no-store"
    return response, status
