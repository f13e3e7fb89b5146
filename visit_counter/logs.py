"""One format for every line of the log, whichever process writes it, and how often the same thing is written.

Three rules: a line has a time, a process and a level. What any client can cause is written once, then as a count each
minute, so that a flood of garbage fills no disk. A warning that every worker of a host comes to is written by one.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import tempfile
import threading
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# Those of gunicorn, so that all lines look alike.
FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"

# How the messages begin that a client can cause at will, once a request.
FLOODS = (
    "Invalid request from ip=",
    "Error handling request",
    "Socket error processing request",
    "Cannot accept a connection",
    "%s %s failed",  # a bug of the service that some request brings out
)
FLOOD_SECONDS = 60.0

# How long a warning of one worker stands for those of the others.
ONCE_SECONDS = 10.0
# The same for a warning that says how something is now. The workers notice a shard that is down at its next use, which
# is at the latest when a flush is due.
STATE_SECONDS = 120.0

_SLOTS = 1024
_SLOT = struct.Struct("=IId")  # CRC-32 of a text, who wrote it last (process id) and when (monotonic seconds)


def set_up(level: int = logging.INFO) -> None:
    """Write the log of this process to the standard error, warnings of Python included.

    For processes that are not gunicorn's: the supervisor, a flush, a command. Does nothing in a process whose log is
    set up already.
    """
    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
    take_over(handler, level)


def take_over(handler: logging.Handler, level: int) -> None:
    """Let this handler have the records of our modules from `level` on, and the warnings of everything else."""
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("visit_counter").setLevel(level)
    logging.captureWarnings(True)


class _Flood(NamedTuple):
    """A kind of record: when it was last written (monotonic seconds), and how many were dropped since."""

    written_at: float
    dropped: int


class Throttle(logging.Filter):
    """Lets the first record of each kind of flood through; of those that follow, a count each minute."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, later: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        """`clock` gives seconds; `later` has a function called after FLOOD_SECONDS, by default in a thread."""
        super().__init__()
        self._clock = clock
        self._later = later or _in_a_minute
        self._floods: dict[str, _Flood] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        kind = next((kind for kind in FLOODS if str(record.msg).startswith(kind)), None)
        if kind is None:
            return True
        with self._lock:
            flood = self._floods.get(kind)
            if flood is None or (not flood.dropped and self._clock() - flood.written_at >= FLOOD_SECONDS):
                self._floods[kind] = _Flood(self._clock(), 0)
                return True
            self._floods[kind] = flood._replace(dropped=flood.dropped + 1)
            if not flood.dropped:
                self._later(lambda: self._write_count(kind, record))
            return False

    def _write_count(self, kind: str, first: logging.LogRecord) -> None:
        """Write how many records of a kind were not written, with the first of them as the example."""
        with self._lock:
            dropped = self._floods[kind].dropped
            self._floods[kind] = _Flood(self._clock(), 0)
        logger = logging.getLogger(first.name)
        logger.log(first.levelno, "%d more in the last minute like: %s", dropped, first.getMessage())


def _in_a_minute(function: Callable[[], None]) -> None:
    timer = threading.Timer(FLOOD_SECONDS, function)
    timer.daemon = True
    timer.start()


class OncePerHost(logging.Filter):
    """Drops a warning that another process has just written. Make it before the fork: the memory is shared.

    A warning that says how something is now (`state_of`) is dropped if that is what another process has written of it
    last. So the beginning and the end of an outage are a line each, whichever workers notice it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written = mmap.mmap(-1, _SLOTS * _SLOT.size)
        with tempfile.TemporaryFile() as file:
            self._lock = os.dup(file.fileno())  # a nameless file, locked between processes

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        if record.levelno < logging.WARNING:
            return True
        subject, state = getattr(record, "state_of", (None, ""))
        text = f"{subject} {state}" if subject else record.getMessage()
        seconds = STATE_SECONDS if subject else ONCE_SECONDS
        # The lock of a file belongs to a process: it does not exclude two threads of one, and both may write.
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            return self._note(subject or text, text, seconds)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _note(self, subject: str, text: str, seconds: float) -> bool:
        """Note what is written of a subject; False if another process has written the same within so many seconds."""
        now, at = time.monotonic(), _checksum(subject) % _SLOTS * _SLOT.size
        checksum = _checksum(text)
        found, process, written_at = _SLOT.unpack_from(self._written, at)
        if found == checksum and process != os.getpid() and now - written_at < seconds:
            return False
        _SLOT.pack_into(self._written, at, checksum, os.getpid(), now)
        return True


def state_of(subject: str, state: str) -> dict[str, tuple[str, str]]:
    """Return the `extra` of a warning that says how something is now, for example that a shard is down."""
    return {"state_of": (subject, state)}


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode(errors="replace"))
