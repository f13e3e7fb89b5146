"""Checks gunicorn's command line and environment before gunicorn reads them; gunicorn_conf.py calls this."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from gunicorn import util
from gunicorn.config import Config

from visit_counter.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def check_worker_class(default: str, environ: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Raise StartupError if the worker class that gunicorn is to use cannot be loaded.

    gunicorn itself would show a traceback, before it calls any hook. So this reads the options as gunicorn does.
    """
    parser = Config().parser()
    given = [shlex.split(environ.get("GUNICORN_CMD_ARGS", "")), arguments]
    uris = [parser.parse_known_args(words)[0].worker_class for words in given]
    uri = uris[1] or uris[0] or default
    try:
        util.load_class(uri)
    except RuntimeError as error:
        # The message ends with a traceback in brackets.
        reason = str(error).strip("] \n").splitlines()[-1].rpartition("Error: ")[2]
        raise StartupError(f"the worker class {uri} cannot be used: {reason}; allowed: gthread, or no -k") from None


def check_threads(threads: int) -> None:
    """Raise StartupError for no threads at all; gunicorn would start workers that end with a traceback."""
    if threads < 1:
        raise StartupError(f"{threads} threads would answer nobody; allowed: --threads 1 or more")
