"""`visit-counter serve`: runs gunicorn in this process, with the package's configuration and application."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.wsgiapp import WSGIApplication

from visit_counter.server import startup

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

CONFIGURATION = Path(__file__).with_name("gunicorn_conf.py")


class VisitCounterApplication(WSGIApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's command line, with `serve` before its options and without the name of an application."""

    def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> None:
        """Set the path of the configuration, unless one is given; gunicorn calls this before it reads one."""
        if args[1:]:
            parser.error(f"there is no {' '.join(args[1:])} to serve; allowed: options")
        given = parser.parse_args(self.cfg.get_cmd_args_from_env()).config
        opts.config = opts.config or given or f"file:{CONFIGURATION}"
        # gunicorn demands the name of an application, though `load_wsgiapp` does not use it.
        self.app_uri = "visit-counter"
        self.cfg.set("default_proc_name", self.app_uri)

    def chdir(self) -> None:
        """Change to the directory of `--chdir`. gunicorn's own method would also import modules from it."""
        os.chdir(self.cfg.chdir)

    def load_wsgiapp(self) -> Any:
        """Return the application, in a worker."""
        from visit_counter import create_app  # noqa: PLC0415 - see `startup._load_code`

        with startup.errors_in_one_line():
            return create_app(startup.loaded_settings())


def serve() -> None:
    """Serve until a signal ends it; raises SystemExit. gunicorn reads its options from `sys.argv`."""
    VisitCounterApplication("%(prog)s [OPTIONS]", prog="visit-counter serve").run()


def program_of(app: object) -> str:
    """Return the module with which `python -m` starts this application again."""
    return "visit_counter" if isinstance(app, VisitCounterApplication) else "gunicorn"
