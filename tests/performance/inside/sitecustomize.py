"""Notes garbage collections: imported by every Python process that is started with this folder in PYTHONPATH.

A collection of a millisecond or more becomes a line in the file named after the process's id in the folder LIFE_GC_DIR:
when it began and ended, in seconds of the monotonic clock, which all processes share, and its generation.
"""

from __future__ import annotations

import gc
import os
import time

_LEAST_SECONDS = 0.001
_began = 0.0


def _note(phase: str, info: dict[str, int]) -> None:
    global _began  # noqa: PLW0603 - one collection at a time, and no object that it could collect
    now = time.monotonic()
    if phase == "start":
        _began = now
    elif now - _began >= _LEAST_SECONDS:
        descriptor = os.open(f"{os.environ['LIFE_GC_DIR']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{_began} {now} {info['generation']}\n".encode())
        os.close(descriptor)


if "LIFE_GC_DIR" in os.environ:
    gc.callbacks.append(_note)
