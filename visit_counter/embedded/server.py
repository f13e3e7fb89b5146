"""One embedded shard as its supervisor sees it: the directory, the lock on it, and the server."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from visit_counter.config.embedded_files import (
    LOCK_FILE,
    is_at,
    password_file,
    read_password,
    server_pid,
    shard_dir,
    try_lock,
    write_pid,
)
from visit_counter.embedded import program
from visit_counter.errors import EmbeddedError, ServerRefusedError
from visit_counter.private_files import open_private
from visit_counter.shards.redis.resp import Listener, identify, protect, write_anew

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

# A server needs less time than this to sync its file.
END_SECONDS = 15
# Other processes take the lock for a moment to check whether it is free.
_LOCK_SECONDS = 0.5
_FIRST_DELAY_SECONDS = 0.2
_LAST_DELAY_SECONDS = 10.0
_CHECK_SECONDS = 1.0
# After a server has run for this long, the delay before it is started again is the first one.
_SOUND_SECONDS = 10.0
# The file that lists the parts of the append-only file; servers before Redis 7 have none.
_MANIFEST = "appendonlydir/appendonly.aof.manifest"


class ShardServer:
    """The server of one embedded shard. The process that holds the shard's lock runs it."""

    def __init__(self, binary: str, data_dir: Path, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.dir = shard_dir(data_dir, name)
        self.locked = self._had_manifest = False
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._found_pid = self._ending_pid = 0
        self._next_try = 0.0
        self._delay_seconds = _FIRST_DELAY_SECONDS
        self._started = 0.0
        try:
            self._password = read_password(password_file(data_dir))
            self._lock_fd = self._open_lock()
        except OSError as error:
            raise EmbeddedError(f"cannot write to {self.dir}: {error.strerror}; set VISITS_DATA_DIR") from None

    # -- the lock ---------------------------------------------------------------------------------------------------

    def lock(self, seconds: float = 0.0) -> bool:
        """Take the lock that only the supervisor that runs this shard holds; False if another has it."""
        deadline = time.monotonic() + seconds
        while not self.locked:
            if try_lock(self._lock_fd, fcntl.LOCK_EX):
                self.locked = True
                self._found_pid = self._found_pid or server_pid(self.dir)
                self._had_manifest = bool(self._found_pid) and (self.dir / _MANIFEST).exists()
                # The text always has the same length, so that a reader never finds parts of two texts.
                os.pwrite(self._lock_fd, b"%-5d %-10d\n" % (self.port, os.getpid()), 0)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(0.01)
        return True

    def _holders_port(self) -> int:
        """Return the port that the supervisor with the lock has noted; 0 if it is of a version that notes none."""
        noted = os.pread(self._lock_fd, 64, 0).split()
        return int(noted[0]) if noted else 0

    def was_removed(self) -> bool:
        """Return whether somebody removed the files that the server has open."""
        there = (self.dir / _MANIFEST).exists()
        if self._had_manifest and not there:
            return True
        self._had_manifest = there
        return self.locked and not is_at(self._lock_fd, self.dir / LOCK_FILE)

    def put_back(self) -> None:
        """Let the server write all its data into the directory, which was made again. Raises OSError."""
        self._had_manifest = False  # until the server has written it
        removed, self._lock_fd, self.locked = self._lock_fd, self._open_lock(), False
        os.close(removed)
        if not self.lock(_LOCK_SECONDS):
            log.error("shard %s: another supervisor has taken %s", self.name, self.dir)
            return
        write_pid(self.dir, self._process.pid if self._process else self._found_pid)
        try:
            write_anew(self.port, self._password, self.dir)
        except (OSError, ValueError, ServerRefusedError) as error:
            log.error("shard %s does not write its files anew: %s", self.name, error)

    def _open_lock(self) -> int:
        return open_private(self.dir / LOCK_FILE, os.O_RDWR | os.O_CREAT)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock_fd)

    # -- the start --------------------------------------------------------------------------------------------------

    def end_leftover(self) -> None:
        """End the server of a supervisor that was killed, if it listens on another port than it has now."""
        if not self.lock(_LOCK_SECONDS) or not server_pid(self.dir) or self._identify().kind == "ours":
            return
        self.ask_to_end()
        self.wait_for_end()

    def first_start(self) -> None:
        """Start the server unless it runs already; raise EmbeddedError if something else uses the port."""
        seen = self._identify()
        if seen.kind == "other":
            raise EmbeddedError(
                f"port {self.port} on 127.0.0.1 is taken by {seen.detail}; stop it, or set VISITS_EMBEDDED_PORTS "
                "to free ports, or VISITS_SHARDS to servers of your own"
            )
        if not self.locked and self._holders_port() not in (0, self.port):
            raise EmbeddedError(
                f"the shard {self.name} runs on port {self._holders_port()} already, for another service or command on "
                f"this data directory; set VISITS_EMBEDDED_PORTS as it has them"
            )
        self.watch()

    def answers(self) -> bool:
        """Return whether the server answers and has loaded its data; raise EmbeddedError if it has ended."""
        if self._process and self._process.poll() is not None:
            raise EmbeddedError(f"the server for port {self.port} ended at its start: {self._last_words()}")
        seen = self._identify()
        ready = seen.kind == "ours" and seen.ready
        self._had_manifest = ready and (self.dir / _MANIFEST).exists()
        return ready

    # -- the life ---------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Start the server if this process must run it and it does not run."""
        now = time.monotonic()
        if self._process:
            if self._process.poll() is None:
                return
            if now - self._started > _SOUND_SECONDS:
                self._delay_seconds = _FIRST_DELAY_SECONDS
            log.warning(
                "shard %s ended with status %d (%s); starting it again in %.1f s",
                self.name,
                self._process.returncode,
                self._last_words(),
                self._delay_seconds,
            )
            self._process = None
            self._put_off(now)
        if now < self._next_try or not self.lock():
            return
        seen = self._identify()
        if seen.kind == "nothing" and not server_pid(self.dir):
            self._process, self._started = program.start(self._binary, self.dir, self.port, self._password), now
        elif seen.kind == "other":
            log.warning("shard %s cannot be started: its port is taken by %s", self.name, seen.detail)
            self._put_off(now)
        else:
            # A server runs that a killed supervisor has left or a person has started; or a server is there that has not
            # opened its port yet, or has just closed it.
            self._next_try = now + _CHECK_SECONDS
            self._found_pid = server_pid(self.dir)
            self._protect()

    def _identify(self) -> Listener:
        return identify(self.port, self.dir, self._password)

    def _protect(self) -> None:
        """Give the password to a server that a supervisor of a version without one has left."""
        if self._found_pid:
            with suppress(OSError, ValueError, ServerRefusedError):
                protect(self.port, self._password)

    def _put_off(self, now: float) -> None:
        self._next_try = now + self._delay_seconds
        self._delay_seconds = min(2 * self._delay_seconds, _LAST_DELAY_SECONDS)

    def _last_words(self) -> str:
        """Return the last line of the server's log, and where the log is."""
        path = self.dir / program.LOG_FILE
        try:
            lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
        except OSError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no last words")
        return f"{last}; see {path}"

    # -- the end ----------------------------------------------------------------------------------------------------

    def ask_to_end(self) -> None:
        """Ask the server to end, if this process runs it."""
        if self._process:
            self._process.terminate()
        elif self.locked:
            self._ending_pid = server_pid(self.dir)
            if self._ending_pid:
                os.kill(self._ending_pid, signal.SIGTERM)

    def wait_for_end(self) -> None:
        """Return when the server has ended."""
        deadline = time.monotonic() + END_SECONDS
        while (self._runs() or self._leftover_runs()) and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._process and self._runs():
            log.warning("shard %s does not end; killing it", self.name)
            self._process.kill()
            self._process.wait()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _leftover_runs(self) -> bool:
        return bool(self._ending_pid) and server_pid(self.dir) == self._ending_pid


def end(servers: Iterable[ShardServer]) -> None:
    """End the servers that this process runs, and give their locks back only then."""
    servers = list(servers)
    for server in servers:
        server.ask_to_end()
    for server in servers:
        server.wait_for_end()
    for server in servers:
        server.close()
