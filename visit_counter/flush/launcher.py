"""Starts a flush in a process of its own, and ends one that hangs.

The child reads the settings from its standard input, a pipe. They contain the shards' passwords, which other users of
the machine could read in an argument list, and other processes in an environment. The child finds its modules where the
service found them, whatever directory the service was started from.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visit_counter.config.settings import Settings

log = logging.getLogger(__name__)

# With -P, Python does not import from the directory in which the service was started.
_ARGUMENTS = ("-P", "-m", "visit_counter.flush.process")
# How long a flush that is under way may still take once the service ends; the service itself has 30 s to end.
_LAST_SECONDS = 10.0
_POLL_SECONDS = 0.5


class FlushProcess:
    """Runs flushes in processes of their own, one at a time; one that takes longer than `limit_seconds` is killed."""

    def __init__(self, settings: Settings, limit_seconds: float) -> None:
        self._settings = settings
        self._limit_seconds = limit_seconds
        self._ends = False

    def run(self) -> None:
        """Flush in a child process and wait for its end. A failure is logged; the visits then stay pending."""
        child = subprocess.Popen(
            [sys.executable, *_ARGUMENTS],
            env=_environ(),
            stdin=subprocess.PIPE,
        )
        try:
            self._wait(child)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        if child.returncode:
            log.error("the flush process ended with status %d; its visits stay pending", child.returncode)

    def hurry(self) -> None:
        """Give the process that runs now, if there is one, only a few seconds more: the service is ending."""
        self._ends = True

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        _give(child, self._settings.to_json().encode())
        deadline = time.monotonic() + self._limit_seconds
        while True:
            if self._ends:
                deadline = min(deadline, time.monotonic() + _LAST_SECONDS)
            try:
                child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                log.error("the flush process %d does not come to an end; it is killed", child.pid)
            return


def _give(child: subprocess.Popen[bytes], text: bytes) -> None:
    """Write all of the child's input. Settings fit into a pipe, so this does not wait for the child to read them.

    This is not `communicate` with a time-out: when it is called again after the time-out, it writes nothing more.
    """
    assert child.stdin is not None  # noqa: S101 - `run` asked for a pipe
    with suppress(BrokenPipeError), child.stdin:  # if the child has ended already, `run` logs its status
        child.stdin.write(text)


def _environ() -> dict[str, str]:
    """Return the environment of the child: without the service's settings, and with its paths to modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}  # noqa: PTH100 - of text
