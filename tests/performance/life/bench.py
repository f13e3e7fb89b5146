"""What the rows share: how much is measured, lines of the table, the systems, and a turn of one of them."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.performance import wrk
from tests.performance.worker import two_shards, webdis
from tests.support import processes
from tests.support.ports import free_port, listening
from tests.support.servers import REPOSITORY, GunicornServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

INSIDE = REPOSITORY / "tests" / "performance" / "inside"
WEBDIS = "/INCR/"  # webdis takes a command as a path
_VISIT = b"POST /visits/%b HTTP/1.1\r\nHost: counter.example\r\n\r\n"
_IN_FLIGHT = 64


class Effort(NamedTuple):
    """How much is measured; times in seconds. The defaults are the whole benchmark."""

    turns: int = 3
    requests: float = 5  # one turn of a row that asks as fast as it can
    warm_up: float = 1  # before it: what is slow only at first is not measured
    flush_every: float = 60  # as the service has it by default
    zipf: tuple[float, float] = (30, 60)  # before, so that a flush is in the turn; the turn
    life: tuple[float, float] = (54, 70)  # before the first flush; a turn with two flushes
    pause: float = 1200
    after_kill: float = 60
    popular: float = 27  # some two million visits
    flushed_pages: int = 100_000
    replayed_pages: int = 1_000_000
    cached_pages: int = 100_000
    worker_pages: int = 1_000_000
    settle: float = 5  # until an idle service is really idle


SHORT = Effort(1, 1, 0, 3, (0, 1), (1, 5), 2, 0.5, 1, 2_000, 5_000, 2_000, 2_000, 0.5)


class Line(NamedTuple):
    """A line of the table: what was measured, against its goal; `reached` may be None where there is no goal."""

    figure: str
    measured: str
    goal: str
    reached: bool | None


def at_least(figure: str, value: float, goal: float, unit: str = "x", more: str = "") -> Line:
    """Return the line of a figure that should not be smaller."""
    return Line(figure, _shown(value, unit) + more, f"{_shown(goal, unit)} or more", value >= goal)


def at_most(figure: str, value: float, goal: float, unit: str, more: str = "") -> Line:
    """Return the line of a figure that should not be greater."""
    return Line(figure, _shown(value, unit) + more, f"{_shown(goal, unit)} or less", value <= goal)


def _shown(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f}{'' if unit in ('x', '') else ' '}{unit}"


class System(NamedTuple):
    """Something that serves on the servers' core: where, how it is asked to count, and its processes."""

    url: str
    path: str
    pids: Callable[[], list[int]]


class Turn(NamedTuple):
    """What one turn of one system measured."""

    per_second: float
    p99_ms: float
    cpu_us: float  # of all processes of the system, for a request

    def __str__(self) -> str:
        return f"{self.per_second:,.0f}/s, p99 {self.p99_ms:.1f} ms, CPU {self.cpu_us:.1f} us"


def median(turns: Sequence[Turn]) -> Turn:
    """Return the median of each figure."""
    return Turn(*(statistics.median(column) for column in zip(*turns, strict=True)))


class Bench:
    """The folder and the cores of one row, and how much it measures."""

    def __init__(self, effort: Effort, folder: Path) -> None:
        self.effort = effort
        self._folder = folder
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.load_core = cores[0], cores[-1]

    @contextmanager
    def own_folder(self) -> Iterator[Path]:
        """Give a folder that is removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            yield Path(name)

    def progress(self, text: str) -> None:
        """Show what is going on, on a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    # -- systems -----------------------------------------------------------------------------------------------------

    @contextmanager
    def service(self, workers: int = 1, **environ: str) -> Iterator[tuple[GunicornServer, list[int]]]:
        """Run the service over two shards of its own; give these too, by process id."""
        with ExitStack() as stack:
            folder = stack.enter_context(self.own_folder())
            others = set(processes.tree(os.getpid()))
            with wrk.pinned(self.server_core):
                urls = two_shards(stack, folder)
                shards = [pid for pid in processes.tree(os.getpid()) if pid not in others]
                environ = {"VISITS_SHARDS": urls, "VISITS_FLUSH_SECONDS": str(self.effort.flush_every)} | environ
                server = GunicornServer(folder / "service", "-w", str(workers), port=0, **environ)
                stack.callback(end_service, server)
                server.start()
            wait_until(lambda: len(server.worker_pids) == workers, "all workers run")
            yield server, shards

    @contextmanager
    def ours(self) -> Iterator[System]:
        """Run the service with one worker."""
        with self.service() as (server, shards):
            yield System(server.url, "/visits/", lambda: [*processes.tree(server.pid), *shards])

    @contextmanager
    def webdis(self, appendonly: str = "no") -> Iterator[System]:
        """Run webdis, whose Valkey is on the same core."""
        with ExitStack() as stack:
            folder = stack.enter_context(self.own_folder())
            with wrk.pinned(self.server_core):
                port, pids = webdis(stack, folder, self.server_core, appendonly)
            yield System(f"http://127.0.0.1:{port}", WEBDIS, pids)

    @contextmanager
    def nginx(self) -> Iterator[System]:
        """Run nginx with one worker and a fixed answer: what no server that counts can do better."""
        port = free_port()
        with self.own_folder() as folder:
            config = folder / "nginx.conf"
            config.write_text(_NGINX.format(folder=folder, port=port), encoding="ascii")
            command = [shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(config), "-e", "stderr"]
            with wrk.pinned(self.server_core):
                process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                wait_until(lambda: listening(port), "nginx listens")
                yield System(f"http://127.0.0.1:{port}", "/visits/", lambda: processes.tree(process.pid))
            finally:
                process.terminate()
                process.wait()

    # -- turns -------------------------------------------------------------------------------------------------------

    def turn(self, system: System, requests: wrk.Requests, seconds: float, warm_up: float | None = None) -> Turn:
        """Ask a system as fast as it answers; not measured are `warm_up` seconds before, by default the effort's."""
        warm_up = self.effort.warm_up if warm_up is None else warm_up
        with self.own_folder() as folder:
            if warm_up:
                first = requests._replace(path=system.path, pages="turn" if requests.pages == "new" else requests.pages)
                wrk.run(system.url, first, warm_up, folder, core=self.load_core)
            before = processes.cpu_seconds(system.pids())
            result = wrk.run(system.url, requests._replace(path=system.path), seconds, folder, core=self.load_core)
            used = processes.cpu_seconds(system.pids()) - before
        return Turn(result.per_second, result.p99_us / 1e3, used / result.requests * 1e6)

    def in_turn(self, sides: dict[str, Callable[[], Turn]]) -> dict[str, Turn]:
        """Let the sides take turns, so that all meet the same machine; return the median of each."""
        found: dict[str, list[Turn]] = {side: [] for side in sides}
        for number in range(self.effort.turns):
            for side, measure in sides.items():
                self.progress(f"turn {number + 1} of {self.effort.turns}: {side}")
                found[side].append(measure())
        return {side: median(turns) for side, turns in found.items()}

    def side(
        self, start: Callable[[], AbstractContextManager[System]], requests: wrk.Requests, *seconds: float
    ) -> Callable[[], Turn]:
        """Return a side for `in_turn`: a system that is started for each turn, so that none works in another's.

        `seconds` are those of a turn, and of the same requests before it.
        """

        def measure() -> Turn:
            with start() as system:
                return self.turn(system, requests, *(seconds or (self.effort.requests,)))

        return measure


def end_service(server: GunicornServer) -> None:
    """End a service at once, with all that it started in this or another session; what it has not flushed is lost."""
    if server.runs():
        pids = [*processes.tree(server.pid), *processes.session(server.pid)]
        processes.kill(pids)
        server.wait()


def visit_each(port: int, pages: range) -> None:
    """Visit each page once, over several connections at a time."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(_IN_FLIGHT)]
        for first in range(pages.start, pages.stop, _IN_FLIGHT):
            batch = list(zip(socks, range(first, min(first + _IN_FLIGHT, pages.stop)), strict=False))
            for sock, page in batch:
                sock.sendall(_VISIT % (b"site/page-%d" % page))
            for sock, _ in batch:
                answer = sock.recv(4096)
                assert answer.startswith(b"HTTP/1.1 20"), answer


_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log /dev/null;
events {{ worker_connections 512; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    default_type application/json;
    location / {{ return 200 '{{"visits": 12345, "served_via": "redis_7070"}}'; }}
  }}
}}
"""
