"""Injected faults: imported by every Python process that is started with this folder in PYTHONPATH, and only there.

The first process that reaches a step for which a file lies in the folder FAULTS_DIR takes the file and does what its
name says: `kill.send` ends the process, `stop.send` freezes it, `tell.send` only tells that the step was reached.

Names that end with `.shard.test` are this machine; while the file FAULTS_DIR.names is there, the look-up of any name
hangs.

As long as `fail.fdatasync` or `fail.write` lies there, that call of the module `os` fails for regular files, with the
error number that the file holds.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_SIGNALS = (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP), ("tell", None))


def _hook(name: str) -> None:
    folder = os.environ["FAULTS_DIR"]
    if not os.listdir(folder):  # noqa: PTH208 - at every step
        return
    for kind, number in _SIGNALS:
        try:
            # Only one process can take it.
            os.rename(f"{folder}/{kind}.{name}", f"{folder}.taken/{kind}.{name}.{os.getpid()}")  # noqa: PTH104 - pathlib is not imported yet
        except FileNotFoundError:
            continue
        if number is not None:
            os.kill(os.getpid(), number)


def _failing(name: str) -> Any:
    """Return a call of the module `os` that fails as long as the file says so."""
    real, path = getattr(os, name), f"{os.environ['FAULTS_DIR']}/fail.{name}"

    def call(descriptor: int, *arguments: Any) -> Any:
        if os.path.exists(path) and stat.S_ISREG(os.fstat(descriptor).st_mode):  # noqa: PTH110 - at every call
            with suppress(FileNotFoundError, ValueError), open(path, encoding="ascii") as file:  # noqa: PTH123 - as above
                number = int(file.read())
                raise OSError(number, os.strerror(number))
        return real(descriptor, *arguments)

    return call


class _Finder(MetaPathFinder):
    """Puts the hook into `visit_counter.steps` when that is imported; nothing is imported early."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "visit_counter.steps":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_hook(module: ModuleType) -> None:
            load(module)
            module.hook = _hook  # type: ignore[attr-defined]  # set for this process

        spec.loader.exec_module = load_and_hook  # type: ignore[method-assign]  # for this test
        return spec


_ask_system = socket.getaddrinfo


def _look_up(host: Any, *arguments: Any, **options: Any) -> Any:
    if isinstance(host, str) and host.endswith((".test", "host")):
        while os.path.exists(f"{os.environ['FAULTS_DIR']}.names"):  # noqa: PTH110 - no more imports in every process
            time.sleep(0.02)
    named = isinstance(host, str) and host.endswith(".shard.test")
    return _ask_system("127.0.0.1" if named else host, *arguments, **options)


if "FAULTS_DIR" in os.environ:
    socket.getaddrinfo = _look_up
    os.fdatasync, os.write = _failing("fdatasync"), _failing("write")
    sys.meta_path.insert(0, _Finder())
