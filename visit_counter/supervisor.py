"""The process that starts, watches and ends the embedded shards: see `visit_counter.embedded`.

    python -m visit_counter.supervisor DATA_DIR PORT...

Says `ready` on its standard output once the shards answer, or one line about why they cannot. Ends the servers
it started on `end` or end of file on its standard input, and on SIGTERM.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from visit_counter import logs
from visit_counter.embedded import END_SECONDS, PID_FILE, START_SECONDS, look, server_binary, shard_dir
from visit_counter.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOG = logging.getLogger("visit_counter.supervisor")
_TICK_SECONDS = 0.2
_FIRST_DELAY_SECONDS = 0.2
_LAST_DELAY_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_LOG_FILE = "valkey.log"
# How long a server runs until the next end of it counts as the first.
_SOUND_SECONDS = 10.0
_TOLD_BY_SIGNAL = threading.Event()


class ShardServer:
    """One embedded shard: its directory, the lock on it, and the server, if this process is the one to run it."""

    def __init__(self, binary: str, data_dir: Path, port: int) -> None:
        self.port = port
        self.dir = shard_dir(data_dir, port)
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._orphan_pid = 0
        self._next_try = 0.0
        self._delay_seconds = _FIRST_DELAY_SECONDS
        self._started = 0.0
        self._locked = False
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.dir / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedError(f"cannot write to {self.dir}: {error.strerror}; set VISITS_DATA_DIR") from None

    def first_start(self) -> None:
        """Start the server unless one is there; raise EmbeddedError if something else is on the port."""
        seen = look(self.port, self.dir)
        if seen.kind == "other":
            raise EmbeddedError(
                f"port {self.port} on 127.0.0.1 is taken by {seen.detail}; stop it, or set VISITS_EMBEDDED_PORTS "
                "to free ports, or VISITS_SHARDS to servers of your own"
            )
        self.watch()

    def answers(self) -> bool:
        """Tell whether the server has its data loaded; raise EmbeddedError if it ended instead."""
        if self._process and self._process.poll() is not None:
            raise EmbeddedError(f"the server for port {self.port} ended at its start: {self._last_words()}")
        seen = look(self.port, self.dir)
        return seen.kind == "ours" and seen.ready

    def watch(self) -> None:
        """Start the server if it is for this process to run and does not run."""
        now = time.monotonic()
        if self._process:
            if self._process.poll() is None:
                return
            if now - self._started > _SOUND_SECONDS:
                self._delay_seconds = _FIRST_DELAY_SECONDS
            _LOG.warning(
                "shard redis_%d ended with status %d (%s); starting it again in %.1f s",
                self.port,
                self._process.returncode,
                self._last_words(),
                self._delay_seconds,
            )
            self._process = None
            self._put_off(now)
        if now < self._next_try or not self._lock():
            return
        seen = look(self.port, self.dir)
        if seen.kind == "nothing":
            self._process, self._started = self._spawn(), now
        elif seen.kind == "ours":
            # And under nobody's lock: left by a supervisor that was killed, or started by hand.
            self._next_try = now + _LOOK_SECONDS
        else:
            _LOG.warning("shard redis_%d cannot be started: its port is taken by %s", self.port, seen.detail)
            self._put_off(now)

    def ask_to_end(self) -> None:
        """Tell the server to end, if it is this process that runs it."""
        if self._process:
            self._process.terminate()
        elif self._locked:
            seen = look(self.port, self.dir)
            self._orphan_pid = seen.pid
            if self._orphan_pid:
                os.kill(self._orphan_pid, signal.SIGTERM)

    def wait_for_end(self) -> None:
        """Return when the server has ended, and give the lock back only then."""
        deadline = time.monotonic() + END_SECONDS
        while (self._runs() or self._orphan_runs()) and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._process and self._runs():
            _LOG.warning("shard redis_%d does not end; killing it", self.port)
            self._process.kill()
            self._process.wait()
        os.close(self._lock_fd)

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _orphan_runs(self) -> bool:
        return bool(self._orphan_pid) and look(self.port, self.dir).pid == self._orphan_pid

    def _put_off(self, now: float) -> None:
        self._next_try = now + self._delay_seconds
        self._delay_seconds = min(2 * self._delay_seconds, _LAST_DELAY_SECONDS)

    def _lock(self) -> bool:
        """Take the lock that only the supervisor that runs this shard holds; False if another has it."""
        if not self._locked:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._locked = True
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "pidfile": str(self.dir / PID_FILE),
            "logfile": _LOG_FILE,
            "loglevel": "warning",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.dir / _LOG_FILE).open("ab") as log:
            return subprocess.Popen(
                [self._binary, *arguments],
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A server refuses to start with a locale that this machine does not have.
                env={**os.environ, "LC_ALL": "C"},
            )

    def _last_words(self) -> str:
        """Return the last line of the server's log, and where the log is."""
        path = self.dir / _LOG_FILE
        try:
            lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
        except OSError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no last words")
        return f"{last}; see {path}"


def _start(servers: Sequence[ShardServer]) -> None:
    """Return when all servers answer; one that still loads its data after that time may go on doing so."""
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        server.first_start()
    waiting = list(servers)
    while waiting and time.monotonic() < deadline and not _told_to_end(0.02):
        waiting = [server for server in waiting if not server.answers()]
        for server in waiting:
            # Another supervisor may have had the lock, and gives it up just now.
            server.watch()
    for server in waiting:
        _LOG.warning("shard redis_%d does not answer yet", server.port)


def _told_to_end(timeout_seconds: float) -> bool:
    """Wait so long for the word to end; anything on the standard input, and its end, is that word."""
    return _TOLD_BY_SIGNAL.is_set() or bool(select.select([sys.stdin], [], [], timeout_seconds)[0])


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # then the parent is gone, which the standard input tells
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _on_sigterm(_signal: int, _frame: object) -> None:
    # No exception: it could come between the start of a server and the note of its pid.
    _TOLD_BY_SIGNAL.set()


def main() -> None:
    """Run the shards until told to end."""
    logs.set_up(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_sigterm)
    servers: list[ShardServer] = []
    try:
        binary = server_binary()
        servers += [ShardServer(binary, Path(sys.argv[1]), int(port)) for port in sys.argv[2:]]
        _start(servers)
        _say("ready")
        while not _told_to_end(_TICK_SECONDS):
            for server in servers:
                server.watch()
    except EmbeddedError as error:
        _say(str(error))
    finally:
        for server in servers:
            server.ask_to_end()
        for server in servers:
            server.wait_for_end()


if __name__ == "__main__":
    main()
