"""The process that starts, watches and ends the embedded shards: see `visit_counter.embedded`.

    python -m visit_counter.embedded.supervisor start|again DATA_DIR NAME=PORT...

`start`: writes `ready` to its standard output once the shards answer, or one line with the reason why they cannot.
`again`: takes over from a supervisor that was killed, for a service that runs, and repeats a step that fails.

The process that starts it has no child to wait for: the supervisor forks at once, and goes on in the child. It ends
once another supervisor runs all the shards. It ends the servers, and then itself, when no process needs them any more,
and on SIGTERM.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from visit_counter import logs
from visit_counter.config.embedded_files import is_at, password_file, prepare, read_password, try_lock, users_lock
from visit_counter.embedded.program import server_binary
from visit_counter.embedded.server import ShardServer, end
from visit_counter.errors import EmbeddedError
from visit_counter.private_files import open_private

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

# A server may take this long to read its append-only file. After that the service starts without it.
START_SECONDS = 30
_TICK_SECONDS = 0.1
# How long to try for a lock: another supervisor may be ending, or a process may check whether the lock is free.
_LOCK_SECONDS = 1.0


class Supervisor:
    """Runs all shards of one data directory that no other supervisor runs."""

    def __init__(self, data_dir: Path, shards: Sequence[str]) -> None:
        binary = server_binary()
        named = (shard.split("=") for shard in shards)
        self._servers = [ShardServer(binary, data_dir, name, int(port)) for name, port in named]
        self._data_dir = data_dir
        self._names = [server.name for server in self._servers]
        self._password = read_password(password_file(data_dir))
        # The locks on the file of users. After the file was removed and made again there is one more: processes that
        # joined before hold the lock on the old file, later ones hold that on the new file.
        self._users_fds = [self._open_users_lock()]
        self._was_told_to_end = False
        # The handler raises nothing: an exception could come between starting a server and noting its pid.
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_was_told_to_end", True))

    def start(self) -> None:
        """Start the servers. Return when all answer, or after START_SECONDS, while some may still load their data."""
        deadline = time.monotonic() + START_SECONDS
        for server in self._servers:
            server.end_leftover()
        for server in self._servers:
            server.first_start()
        waiting = list(self._servers)
        while waiting and time.monotonic() < deadline and not self._is_over(0.02):
            waiting = [server for server in waiting if not server.answers()]
            for server in waiting:
                # Another supervisor may have had the lock until now.
                server.watch()
        for server in waiting:
            log.warning("shard %s does not answer yet", server.name)

    def watch(self) -> None:
        """Run the servers that no other supervisor runs, until no process needs them."""
        self._servers = [server for server in self._servers if server.lock(_LOCK_SECONDS)]
        while self._servers and not self._is_over(_TICK_SECONDS):
            if any(server.was_removed() for server in self._servers):
                self._put_back()
            for server in self._servers:
                server.watch()

    def _put_back(self) -> None:
        """Write the removed files again; the servers have their content in memory."""
        log.error("files of the embedded shards were removed from %s; they are written anew", self._data_dir)
        try:
            prepare(self._data_dir, self._names, self._password)
            if not is_at(self._users_fds[-1], users_lock(self._data_dir)):
                self._users_fds.append(self._open_users_lock())
            for server in self._servers:
                if server.was_removed():
                    server.put_back()
        except (EmbeddedError, OSError) as error:
            log.error("they cannot be written: %s", error)

    def _open_users_lock(self) -> int:
        return open_private(users_lock(self._data_dir), os.O_RDWR | os.O_CREAT)

    def end(self) -> None:
        """End the servers. A process that needs them from now on waits until this process has ended."""
        end(self._servers)

    def _is_over(self, seconds: float) -> bool:
        """Wait; return whether no process needs the servers any more, or a signal has asked this process to end."""
        time.sleep(seconds)
        return self._was_told_to_end or self._nobody_needs_them()

    def _nobody_needs_them(self) -> bool:
        """Return whether no process needs the servers; if so, keep the locks, so that no process can join any more."""
        free = [descriptor for descriptor in self._users_fds if try_lock(descriptor, fcntl.LOCK_EX)]
        if len(free) == len(self._users_fds):
            return True
        for descriptor in free:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return False


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # then the parent is gone
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def main() -> None:
    """Run the shards until no process needs them."""
    if os.fork():
        os._exit(0)
    logs.set_up(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    how, data_dir, *shards = sys.argv[1:]
    supervisor = None
    try:
        supervisor = Supervisor(Path(data_dir), shards)
        if how == "start":
            supervisor.start()
            _say("ready")
        supervisor.watch()
    except EmbeddedError as error:
        if how == "start":
            _say(str(error))
        else:
            log.error("the embedded shards cannot be watched: %s", error)
    finally:
        if supervisor:
            supervisor.end()


if __name__ == "__main__":
    main()
