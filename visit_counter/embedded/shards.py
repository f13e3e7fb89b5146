"""The embedded shards as seen by a process that needs them: see `visit_counter.embedded`."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visit_counter.config import embedded_files as files
from visit_counter.embedded.server import END_SECONDS, ShardServer, end
from visit_counter.embedded.supervisor import START_SECONDS
from visit_counter.errors import EmbeddedError
from visit_counter.private_files import open_private
from visit_counter.shards.redis.resp import identify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.config.settings import Settings

log = logging.getLogger(__name__)

# In a session of its own: the terminal's Ctrl-C is for the service alone.
_DETACHED: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
_FIRST_DELAY_SECONDS = 1.0
_LAST_DELAY_SECONDS = 5.0
_SOUND_SECONDS = 10.0


class EmbeddedShards:
    """The embedded shards of one data directory. Nothing is opened or written before a method is called."""

    def __init__(self, settings: Settings) -> None:
        self._data_dir = settings.data_dir
        self._ports = {
            shard.name: port for shard, port in zip(settings.shards, settings.embedded_ports, strict=settings.embedded)
        }
        self._use = -1
        self._starting: subprocess.Popen[bytes]
        self._next_try = 0.0
        self._delay_seconds = _FIRST_DELAY_SECONDS

    # -- using them -------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Take the shared lock, which keeps the supervisor from ending the servers. Raises EmbeddedError."""
        files.prepare(self._data_dir, self._ports)
        descriptor = open_private(files.users_lock(self._data_dir), os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + 2 * END_SECONDS
        while not files.try_lock(descriptor, fcntl.LOCK_SH):
            # A supervisor is ending the servers, because no process needed them any more.
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise EmbeddedError(f"the embedded shards of {self._data_dir} do not end; they cannot be started")
            time.sleep(0.01)
        self._use = descriptor

    def leave(self) -> None:
        """Release the shared lock; the supervisor ends the servers if no other process needs them."""
        if self._use >= 0:
            # This also releases the lock for the processes that were forked from this one.
            fcntl.flock(self._use, fcntl.LOCK_UN)
            os.close(self._use)
            self._use = -1

    def answer(self) -> bool:
        """Return whether all servers answer and have loaded their data."""
        password = files.read_password(files.password_file(self._data_dir))
        seen = [identify(port, files.shard_dir(self._data_dir, name), password) for name, port in self._ports.items()]
        return all(one.kind == "ours" and one.ready for one in seen)

    # -- running them -----------------------------------------------------------------------------------------------

    def start(self, log_fd: int | None = None) -> None:
        """Return once the servers answer, or raise EmbeddedError with nothing left running."""
        self.begin(log_fd)
        self.wait()

    def begin(self, log_fd: int | None = None) -> None:
        """Start a supervisor, which starts the servers; call `wait` then.

        The supervisor writes its log to `log_fd`, else to this process's standard error. It may outlive this process.
        """
        if self._use < 0:
            self.join()
        command, pipe = self._command("start"), subprocess.PIPE
        self._starting = subprocess.Popen(command, **_DETACHED, stdout=pipe, stderr=log_fd, env=_environment())

    def wait(self) -> None:
        """Return once the servers that `begin` started answer, or raise EmbeddedError with nothing left running."""
        with self._starting as process:
            assert process.stdout  # noqa: S101 - `begin` asked for a pipe
            readable, _, _ = select.select([process.stdout], [], [], START_SECONDS + 2 * END_SECONDS)
            line = os.read(process.stdout.fileno(), 4096).decode(errors="replace").strip() if readable else ""
        if line != "ready":
            self.stop()
            raise EmbeddedError(line or "the supervisor of the embedded shards ended")

    def keep(self) -> None:
        """Start another supervisor if there is none. Each process that needs the servers calls this once a second.

        If supervisors end again and again, the next one is started after 1 s, then after 2 s, and so on up to 5 s.
        """
        with suppress(FileNotFoundError):  # somebody removed the files; the supervisor makes them again within a moment
            self._join_anew()
            self._start_if_unsupervised()

    def _join_anew(self) -> None:
        """Take a shared lock for this process, and take it again if its file was removed and made anew."""
        path = files.users_lock(self._data_dir)
        if self._use >= 0 and files.is_at(self._use, path):
            return
        descriptor = open_private(path, os.O_RDWR)
        if files.try_lock(descriptor, fcntl.LOCK_SH):
            self.leave()
            self._use = descriptor
        else:
            os.close(descriptor)

    def _start_if_unsupervised(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        if all(map(self._is_supervised, self._ports)):
            if now > self._next_try + _SOUND_SECONDS:
                self._delay_seconds = _FIRST_DELAY_SECONDS
            return
        self._next_try = now + self._delay_seconds
        self._delay_seconds = min(2 * self._delay_seconds, _LAST_DELAY_SECONDS)
        log.warning("the supervisor of the embedded shards is gone; starting another")
        subprocess.run(self._command("again"), **_DETACHED, stdout=subprocess.DEVNULL, env=_environment(), check=False)

    def stop(self) -> None:
        """Release the shared lock. Return once the servers have ended, or once another process proves to need them."""
        if self._use < 0:
            return
        self.leave()
        deadline = time.monotonic() + 2 * END_SECONDS
        with suppress(FileNotFoundError), files.opened(files.users_lock(self._data_dir)) as descriptor:
            while time.monotonic() < deadline:
                if files.try_lock(descriptor, fcntl.LOCK_EX):
                    if not any(map(self._is_supervised, self._ports)):
                        self._end_leftovers()
                        return
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                elif files.try_lock(descriptor, fcntl.LOCK_SH):
                    return  # another process needs them
                time.sleep(0.01)

    def _is_supervised(self, name: str) -> bool:
        return files.is_supervised(self._data_dir, name)

    def _end_leftovers(self) -> None:
        """End the servers whose supervisor was killed; the caller holds the lock, so no process can join meanwhile."""
        servers = [ShardServer("", self._data_dir, name, port) for name, port in self._ports.items()]
        for server in servers:
            server.lock()
        end(servers)

    def _command(self, how: str) -> list[str]:
        shards = [f"{name}={port}" for name, port in self._ports.items()]
        return [sys.executable, "-m", "visit_counter.embedded.supervisor", how, str(self._data_dir), *shards]


def _environment() -> dict[str, str]:
    """Return the supervisor's environment: it finds this package from any directory, and gets no setting of ours.

    The settings may contain secrets, and the supervisor's arguments contain all that it needs.
    """
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Run the embedded shards while a command runs. Servers that ran before it go on after it."""
    if not settings.embedded:
        yield
        return
    shards = EmbeddedShards(settings)
    shards.join()
    if shards.answer():
        end_use = shards.leave
    else:
        # The supervisor must not inherit the command's standard error. It may go on running for a service, and a
        # program that reads the command's errors to their end would wait for it.
        with files.opened(files.supervisor_log(settings.data_dir), os.O_APPEND) as log_fd:
            shards.start(log_fd)
        end_use = shards.stop
    try:
        yield
    finally:
        end_use()
