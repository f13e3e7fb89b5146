"""Visit Counter: counts visits to web pages, exactly once. `create_app` puts the parts together."""

from __future__ import annotations

import os

from flask import Flask
from flask_caching import Cache
from werkzeug.routing import BaseConverter

from visit_counter.cli.shards import shards as shards_commands
from visit_counter.cli.visits import visits as visits_commands
from visit_counter.config.settings import Settings
from visit_counter.model.answers import MAX_BODY_BYTES
from visit_counter.runtime.service import Service
from visit_counter.web import badge, health, many, origins, pixel, problems, script, visits, why
from visit_counter.web.bodies import read_body
from visit_counter.web.table import LoopCalls

__all__ = ["create_app"]


class EverythingConverter(BaseConverter):
    """Matches all that follows, slashes and control characters too, so that a wrong page is 400 and not 404."""

    regex = "(?s:.*)"
    part_isolating = False


def create_app(settings: Settings | None = None) -> Flask:
    """Return the Flask application; settings come from the environment unless given. Raises SettingsError.

    Opens nothing: `app.extensions["visit_counter"].start()` does, in the process that serves.
    """
    settings = settings or Settings.load(os.environ)
    app = Flask("visit_counter", static_folder=None)
    app.response_class = problems.PlainResponse
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider; keys keep their documented order
    # /visits//a is the page "/a", not a redirect to the page "a".
    app.url_map.merge_slashes = False
    app.url_map.converters["everything"] = EverythingConverter
    cache = Cache(
        app,
        config={
            "CACHE_TYPE": "visit_counter.counting.cache.LocalCache",
            "CACHE_THRESHOLD": settings.cache_pages,
            "CACHE_OPTIONS": {"ttl_seconds": settings.cache_seconds},
        },
    )
    service = Service(settings, app.extensions["cache"][cache])
    app.extensions["visit_counter"] = service
    app.extensions["visit_counter_calls"] = LoopCalls(service.guards)
    app.before_request(read_body)
    app.before_request(service.start_once)
    origins.register(app, service.origins)
    for part in (visits, many, pixel, badge, script, why, health):
        app.register_blueprint(part.blueprint)
    problems.register(app)
    for commands in (visits_commands, shards_commands):
        app.cli.add_command(commands)
    return app
