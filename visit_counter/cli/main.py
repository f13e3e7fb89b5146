"""The command `visit-counter`: `serve`, and all that `flask` has in a checkout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from flask.cli import ScriptInfo

from visit_counter import create_app
from visit_counter.cli.shards import shards
from visit_counter.cli.visits import visits
from visit_counter.config.settings import Settings
from visit_counter.server import startup

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["main"]


@click.group()
@click.pass_context
def main(context: click.Context) -> None:
    """Count visits to web pages: serve, and look after what is counted.

    Settings come from the environment: VISITS_PROFILE, VISITS_DATA_DIR and so on.
    """
    context.obj = ScriptInfo(create_app=_create_app, set_debug_flag=False)


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", metavar="[gunicorn options]", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:  # noqa: ARG001 - gunicorn reads them from sys.argv, also after SIGHUP
    """Serve on 127.0.0.1:8000 until Ctrl-C; serve --help lists gunicorn's options."""
    with startup.errors_in_one_line():
        startup.worker_count(Settings.load(os.environ), os.environ)
    # gunicorn reads the variable as a number when it is imported; an empty one would be an error.
    if not os.environ.get("WEB_CONCURRENCY"):
        os.environ.pop("WEB_CONCURRENCY", None)
    from visit_counter.server.serve import serve as run  # noqa: PLC0415 - see above; commands need no gunicorn

    run()


main.add_command(visits)
main.add_command(shards)


def _create_app() -> Flask:
    with startup.errors_in_one_line():
        return create_app()
