"""The rows of the campaign about what a host knows of stored counts: two hosts with two workers each share two shards.

Readers of each host, on new connections so that any worker may answer, see no count go down, whoever counts. Half of
the trials run under our worker class, half under gthread.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Self

from tests.support import processes
from tests.support.oracle import BrokenError
from tests.support.servers import GunicornServer, ValkeyServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PAGES = [f"page/{number}" for number in range(12)]
_WORKERS = ("visit_counter.server.worker.VisitWorker", "gthread")
# More requests than it takes for each of two workers to have answered, but for one time in many thousands.
_EVERY_WORKER = 16


def ask(port: int, method: str, page: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an answer, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, f"/visits/{page}")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class Crowd:
    """Visitors and readers of one host. `acknowledged`: visits by page; `uncertain`: those without an answer."""

    def __init__(self, server: GunicornServer, random: Random) -> None:
        self.server = server
        self.acknowledged: Counter[str] = Counter()
        self.uncertain: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.answers = 0
        self.broken: list[str] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(Random(random.random()),)) for _ in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, random: Random) -> None:
        while not self._end.is_set():
            method = random.choice(("GET", "GET", "POST"))
            page = random.choice(_PAGES)
            with self._lock:
                lowest = max(self.seen[page], self.acknowledged[page] + (method == "POST"))
            try:
                status, body = ask(self.server.port, method, page)
            except (OSError, ValueError, http.client.HTTPException):
                status, body = 0, {}
            with self._lock:
                self._judge(method, page, lowest, status, body)

    def _judge(self, method: str, page: str, lowest: int, status: int, body: dict[str, Any]) -> None:
        self.answers += status == 200
        if method == "POST":
            (self.acknowledged if status in (200, 202) else self.uncertain)[page] += 1
        if status == 200:
            if body["visits"] < lowest:
                self.broken.append(f"{method} {page}: {body} where {lowest} had been answered before")
            self.seen[page] = max(self.seen[page], body["visits"])


class TwoHosts:
    """Two shards, and hosts that share them."""

    def __init__(self, directory: Path, worker: str, **environ: str) -> None:
        self.dir, self._worker = directory, worker
        self.shards = [ValkeyServer(directory / f"shard_{number}", appendfsync="always").start() for number in (1, 2)]
        self._environ = {
            "VISITS_SHARDS": ",".join(f"s{number}={shard.url}" for number, shard in enumerate(self.shards)),
            "VISITS_FLUSH_SECONDS": "0.2",
            "VISITS_CACHE_SECONDS": "0.3",
            "VISITS_RETAIN_SEGMENTS": "1000",
        } | environ
        self.hosts: list[GunicornServer] = []

    def start(self, name: str) -> GunicornServer:
        """Start a host with two workers."""
        server = GunicornServer(self.dir / name, "-w", "2", "-k", self._worker, port=0, **self._environ).start()
        self.hosts.append(server)
        return server

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            if host.runs():
                host.stop()
        for shard in self.shards:
            shard.kill()

    def compare(self, crowds: list[Crowd], *, may_double: bool = False) -> None:
        """Flush everything and compare with what was acknowledged. Raises BrokenError."""
        for crowd in crowds:
            if crowd.broken:
                raise BrokenError(f"{len(crowd.broken)} answers were wrong, the first: {crowd.broken[0]}")
        for host in self.hosts:
            wait_until(lambda host=host: _pending(host) == 0, "everything is flushed", 60)  # type: ignore[misc]  # mypy cannot infer it
        stored = self.stored()
        for page in _PAGES:
            lowest = sum(crowd.acknowledged[page] for crowd in crowds)
            highest = lowest + sum(crowd.uncertain[page] for crowd in crowds)
            if stored[page] < lowest or (stored[page] > highest and not may_double):
                raise BrokenError(f"{page}: {stored[page]} stored, {lowest} to {highest} are right")

    def stored(self) -> Counter[str]:
        """Return every count in the shards."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            with shard.client() as client:
                for key in client.scan_iter("visits:{*}", count=5000):
                    counts.update({p: int(n) for p, n in client.hgetall(key).items() if not p.startswith("\t")})
        return counts


def _pending(host: GunicornServer) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=60)
    try:
        connection.request("GET", "/health")
        return int(json.loads(connection.getresponse().read())["pending_visits"])
    finally:
        connection.close()


@contextmanager
def _two_hosts(directory: Path, trial: int, **environ: str) -> Iterator[TwoHosts]:
    hosts = TwoHosts(directory / str(trial), _WORKERS[trial % 2], **environ)
    try:
        yield hosts
    finally:
        hosts.close()
        shutil.rmtree(directory / str(trial))


def share_shards(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Two hosts count and read the same pages."""
    random, answers = Random(seed), 0
    for trial in range(trials):
        with _two_hosts(directory, trial) as hosts:
            first, second = Crowd(hosts.start("first"), random), Crowd(hosts.start("second"), random)
            with first, second:
                time.sleep(3)
            hosts.compare([first, second])
        answers += first.answers + second.answers
        progress(trial + 1)
    return f"{answers} answers"


def take_shard_away(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard down: all workers of both hosts answer all that one has read or counted, also after a restart."""
    random, answers = Random(seed), 0
    for trial in range(trials):
        with _two_hosts(directory, trial) as hosts:
            crowds = [Crowd(hosts.start(name), random) for name in ("first", "second")]
            for crowd in crowds:
                for page in _PAGES:
                    ask(crowd.server.port, "POST", page)
                    crowd.acknowledged[page] += 1
            with crowds[0], crowds[1]:
                time.sleep(1.5)
            # Each worker tells once a second what it knows of the pages visited since.
            time.sleep(1.5)
            shard = random.choice(hosts.shards)
            shard.kill()
            for again in (False, True):
                if again:
                    _kill_all(crowds[0].server)
                    crowds[0].server.start()
                answers += sum(_ask_every_worker(crowd) for crowd in crowds)
            shard.start()
            hosts.compare(crowds)
        progress(trial + 1)
    return f"{answers} answers with a shard down"


def _ask_every_worker(crowd: Crowd) -> int:
    for page in _PAGES:
        for _ in range(_EVERY_WORKER):
            status, body = ask(crowd.server.port, "GET", page)
            if status != 200 or body["visits"] < max(crowd.seen[page], crowd.acknowledged[page]):
                raise BrokenError(f"{page}: {status} {body} with a shard down, after {crowd.seen[page]}")
            crowd.seen[page] = body["visits"]
    return len(_PAGES) * _EVERY_WORKER


def _kill_all(server: GunicornServer) -> None:
    pids = server.worker_pids
    server.stop(signal.SIGKILL)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(processes.runs(pid) for pid in pids), "the workers are gone")


def copy_data(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The data directory of a running host copied, and a second host started on the copy."""
    random, answers = Random(seed), 0
    for trial in range(trials):
        with _two_hosts(directory, trial, VISITS_FLUSH_SECONDS="1") as hosts:
            first = Crowd(hosts.start("first"), random)
            with first:
                time.sleep(0.5 + random.random())
                (hosts.dir / "second").mkdir()
                _copy(hosts.dir / "first" / "data", hosts.dir / "second" / "data")
                with Crowd(hosts.start("second"), random) as second:
                    time.sleep(4)
            # What was pending when it was copied may be counted by both.
            hosts.compare([first, second], may_double=True)
        answers += first.answers + second.answers
        progress(trial + 1)
    return f"{answers} answers"


def _copy(source: Path, target: Path) -> None:
    """Copy a directory in which files come and go."""
    for _ in range(100):
        try:
            shutil.copytree(source, target)
        except shutil.Error:
            shutil.rmtree(target)
        else:
            return


def go_back(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard's place taken by an older copy of it, as by a replica that is behind; two hosts."""
    random, answers = Random(seed), 0
    for trial in range(trials):
        with _two_hosts(directory, trial) as hosts:
            first, second = Crowd(hosts.start("first"), random), Crowd(hosts.start("second"), random)
            with first, second:
                time.sleep(0.5)
                shard = random.choice(hosts.shards)
                older = hosts.dir / "older"
                _copy(shard.dir, older)
                time.sleep(random.uniform(0.3, 1.5))
                shard.kill()
                shutil.rmtree(shard.dir)
                older.rename(shard.dir)
                shard.start()
                time.sleep(1.5)
            hosts.compare([first, second])
        answers += first.answers + second.answers
        progress(trial + 1)
    return f"{answers} answers"
