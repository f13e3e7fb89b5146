"""Real servers for tests: each on a free port, in a directory of the test, ended by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.ports import free_port
from visit_counter.embedded.program import server_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Long enough for a loaded machine: no test waits this long unless the code is broken.
DEADLINE_SECONDS = 30.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Return once the condition is true; fail with `what` if it does not become so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def plain_environ() -> dict[str, str]:
    """Return the environment without what would change the service."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VISITS_", "GUNICORN_"))}
    kept.pop("WEB_CONCURRENCY", None)
    return kept


class ValkeyServer:
    """A Valkey server on 127.0.0.1, with the options of an embedded shard unless others are given."""

    def __init__(self, directory: Path, port: int = 0, **options: str) -> None:
        self.dir = directory
        self.port = port
        self.options: tuple[str, ...] = ()  # more of them, as words of the command line
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": ""} | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The url with the server's password, if it has one."""
        password = self._options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process, "the server was not started"
        return self._process.pid

    def client(self, **options: Any) -> Any:
        """Return a redis-py client that neither retries nor waits long; use it in a `with`."""
        options = {"socket_timeout": 5.0, "decode_responses": True} | options
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), **options)

    def start(self) -> Self:
        """Start, or start again on the same port and data; return when it answers."""
        fixed = self.port
        for _ in range(10):
            self.port = fixed or free_port()
            self._spawn()
            wait_until(lambda: self._answers() or not self.runs(), f"Valkey answers on {self.port}")
            if self.runs():
                return self
        raise AssertionError(f"Valkey does not start: {(self.dir / 'log').read_text(encoding='utf-8')}")

    def _spawn(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        words: list[str] = []
        for name, value in ({"bind": "127.0.0.1", "port": str(self.port), "logfile": "log"} | self._options).items():
            words += [f"--{name}", value]
        self._process = subprocess.Popen(
            [server_binary(), *words, *self.options],
            cwd=self.dir,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.info("server")["process_id"] == self.pid) and bool(client.ping())
        except redis.RedisError:
            return False

    def runs(self) -> bool:
        """Tell whether the server's process is alive."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal to the server."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with kill -9, as a crash of the machine would."""
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop answering without closing anything."""
        self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self.send_signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server and wait until it is gone; nothing if it does not run."""
        if self._process and self.runs():
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        if self._process:
            self._process.wait(DEADLINE_SECONDS)


@contextmanager
def running_valkeys(*folders: Path, **options: str) -> Iterator[list[ValkeyServer]]:
    """Give a running Valkey server in each folder, with these options; each ends with the `with`."""
    servers = [ValkeyServer(folder, 0, **options) for folder in folders]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield servers


def _session_of(pid: int) -> int:
    """Return the session of a process; 0 if it has just ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


class GunicornServer:
    """The service as its users start it: gunicorn with the project's configuration, from the root of a checkout."""

    def __init__(self, directory: Path, *arguments: str, port: int = 0, app: str = "wsgi:app", **environ: str) -> None:
        self.dir = directory
        self.cwd: Path | None = None  # where it is started, if not there where its code is
        self.root = REPOSITORY  # of the checkout whose code runs
        self.port = port
        self.inherited: tuple[int, ...] = ()  # the numbers of open files that it gets from this process
        self._app = app
        self._arguments = arguments
        self._log = directory / "gunicorn.log"
        self._environ = {"VISITS_DATA_DIR": str(directory / "data")} | environ
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The base of all urls, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of gunicorn's master."""
        assert self._process, "gunicorn was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """All that gunicorn and the service wrote to the terminal so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers, oldest first; the master has other children, known by their session."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return [int(child) for child in children if _session_of(int(child)) == os.getsid(self.pid)]

    def start(self, path: str = "/health") -> Self:
        """Start and return when the service answers on `path`."""
        fixed = self.port
        for _ in range(5):
            self.port = fixed or free_port()
            self.spawn()
            wait_until(lambda: not self.runs() or self._answers(path), f"the service answers; its log: {self.log}")
            if self.runs():
                return self
            if "is in use" not in self.log:
                break
        raise AssertionError(f"the service does not start; its log: {self.log}")

    def spawn(self) -> Self:
        """Start and return at once, for a start that is to fail."""
        self.port = self.port or free_port()
        self.dir.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # Not python -m gunicorn: after SIGUSR2 that finds gunicorn's `http` in place of the library's.
                    *(sys.executable, str(Path(sys.executable).with_name("gunicorn")), self._app),
                    *self.listens_on(),
                    *self._arguments,
                ],
                cwd=self.cwd or self.root,
                env=plain_environ() | self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.inherited,
            )
        return self

    def listens_on(self) -> tuple[str, ...]:
        """Return the options that say where it listens."""
        return "-b", f"127.0.0.1:{self.port}"

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False

    def health(self, timeout_seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Return what /health says."""
        with urllib.request.urlopen(f"{self.url}/health", timeout=timeout_seconds) as answer:
            body: dict[str, Any] = json.load(answer)
            return body

    def runs(self) -> bool:
        """Tell whether the master is alive."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until the master has ended; return its exit status.

        A worker that is told to end while it boots may miss it; gunicorn kills it after the graceful time-out.
        """
        assert self._process, "gunicorn was not started"
        return self._process.wait(2 * DEADLINE_SECONDS)

    def interrupt(self) -> int:
        """Press Ctrl-C: SIGINT to every process of the terminal's foreground group; return the exit status."""
        os.killpg(self.pid, signal.SIGINT)
        return self.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the master and wait; return its exit status. After SIGKILL the workers end by themselves.

        One that does not end in time is killed, and the test fails.
        """
        if not self._process:
            return 0
        if self.runs():
            self._process.send_signal(number)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
