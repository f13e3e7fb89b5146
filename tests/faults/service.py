"""The service under load, for faults: two shards, gunicorn with two workers, visitors, and the oracle."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from tests.support import processes
from tests.support.oracle import BrokenError, Oracle
from tests.support.servers import REPOSITORY, GunicornServer, ValkeyServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = Path(__file__).resolve().parent / "inside"
_SHARED_PAGES = 20
_PAUSE_SECONDS = 0.004


class Visitors:
    """Threads that visit and read: pages of their own (exact equality) and shared ones."""

    def __init__(self, port: int, oracle: Oracle, seed: int, threads: int = 3) -> None:
        self.oracle, self.port = oracle, port
        self.broken: list[BaseException] = []
        # While what is acknowledged may be in one worker's memory only, and not all others can show it.
        self.may_see_less = False
        self.answers = 0
        self._unique = 0
        self._lock = threading.Lock()
        self._state = threading.Condition()  # of the next three
        self._run = self._end = False
        self._resting = 0
        self._threads = [
            threading.Thread(target=self._loop, args=(Random(seed + n),), daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def go(self) -> None:
        """Visit until `rest`."""
        with self._state:
            self._run = True
            self._state.notify_all()

    def rest(self) -> None:
        """Return once no request is under way."""
        with self._state:
            self._run = False
            self._state.wait_for(lambda: self._resting == len(self._threads))

    def end(self) -> None:
        """End the threads, which rest."""
        self._end = True
        self.go()
        for thread in self._threads:
            thread.join()

    def _loop(self, random: Random) -> None:
        connection = None
        while True:
            with self._state:
                self._resting += 1
                self._state.notify_all()
                self._state.wait_for(lambda: self._run)
                self._resting -= 1
            if connection is not None and (self._end or random.random() < 0.1):
                connection.close()
                connection = None
            if self._end:
                return
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                self._visit(connection, random)
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
            except BaseException as error:  # noqa: BLE001 - told by the campaign
                self.broken.append(error)
            time.sleep(_PAUSE_SECONDS)

    def _visit(self, connection: http.client.HTTPConnection, random: Random) -> None:
        reads = random.random() < 0.3
        with self._lock:
            page = f"shared/{random.randrange(_SHARED_PAGES)}"
            if not reads and random.random() < 0.5:
                self._unique += 1
                page = f"unique/{self._unique}"
            lowest = max(self.oracle.acknowledged(page) + (not reads), self.oracle.seen[page])
            if not reads:
                self.oracle.begin(page, 1)
        connection.request("GET" if reads else "POST", f"/visits/{quote(page)}")
        response = connection.getresponse()
        body = json.loads(response.read())
        with self._lock:
            self.answers += 1
            if not reads and response.status in (200, 202):
                self.oracle.acknowledge(page, 1)
            elif not reads and response.status == 503:
                self.oracle.refused(page, 1, surely="may have been counted" not in body["detail"])
            if response.status == 200:
                self.oracle.saw(page, body["visits"], 0 if self.may_see_less else lowest)
            elif response.status not in (202, 503):
                raise BrokenError(f"{page}: status {response.status}: {body}")


class FaultyService:
    """Two shards and the service, with visitors; use it in a `with`."""

    def __init__(
        self, directory: Path, *options: str, seed: int = 0, fsync: str = "everysec", workers: int = 2, **environ: str
    ) -> None:
        """`options` are gunicorn's, `fsync` is the shards', `environ` holds further settings."""
        self.dir = directory
        self.random = Random(seed)
        self.oracle = Oracle()
        self.faults = directory / "faults"
        self.faults.mkdir(parents=True)
        (directory / "faults.taken").mkdir()
        self.shards = [ValkeyServer(directory / f"shard_{number}", appendfsync=fsync) for number in (1, 2)]
        self._workers, self._options = workers, options
        self._environ = {
            "VISITS_FLUSH_SECONDS": "0.1",
            "VISITS_CACHE_SECONDS": "0.5",
            "VISITS_RETAIN_SEGMENTS": "10",
            "PYTHONPATH": f"{INSIDE}{os.pathsep}{REPOSITORY}",
            "FAULTS_DIR": str(self.faults),
        } | environ

    def __enter__(self) -> Self:
        self._environ |= self._start_shards()
        if path := self._environ.get("VISITS_SHARDS_FILE"):
            Path(path).write_text(self._environ.pop("VISITS_SHARDS"), encoding="ascii")
        # With the application loaded before the fork a worker is back in a few milliseconds.
        options = ("--preload", "-w", str(self._workers), *self._options)
        self.server = GunicornServer(self.dir, *options, port=0, **self._environ).start()
        self.visitors = Visitors(self.server.port, self.oracle, self.random.randrange(1 << 30))
        self.visitors.go()
        return self

    def _start_shards(self) -> dict[str, str]:
        """Start them, and return the settings by which the service finds them."""
        for shard in self.shards:
            shard.start()
        return {"VISITS_SHARDS": ",".join(f"s{n}={shard.url}" for n, shard in enumerate(self.shards))}

    def __exit__(self, *_: object) -> None:
        self.visitors.rest()
        self.visitors.end()
        for pid in self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.server.stop()
        for shard in self.shards:
            shard.kill()

    def worker_pids(self) -> list[int]:
        """The workers there are now."""
        try:
            return [pid for pid in self.server.worker_pids if processes.runs(pid)]
        except (OSError, ProcessLookupError):
            return []

    def wait_for_workers(self) -> None:
        """Return when all workers are there."""
        wait_until(lambda: len(self.worker_pids()) == self._workers, "all workers run")

    def arm(self, kind: str, step: str) -> None:
        """Let the next process that reaches a step be killed, stopped or only told of."""
        (self.faults / f"{kind}.{step}").touch()

    def reached(self, kind: str, step: str) -> int:
        """Wait until a process took it; return its id."""
        wait_until(lambda: not (self.faults / f"{kind}.{step}").exists(), f"a process reaches the step {step}")
        [taken] = (self.dir / "faults.taken").glob(f"{kind}.{step}.*")
        taken.unlink()
        return int(taken.suffix[1:])

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """No visits meanwhile."""
        self.visitors.rest()
        try:
            yield
        finally:
            self.visitors.go()

    def pending(self) -> int:
        """What /health says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request("GET", "/health")
            return int(json.loads(connection.getresponse().read())["pending_visits"])
        except (OSError, ValueError, http.client.HTTPException):
            return -1
        finally:
            connection.close()

    def compare(self) -> None:
        """Let everything be flushed, and compare each page in the shards with the oracle. Raises BrokenError."""
        with self.at_rest():
            wait_until(lambda: self.pending() == 0, f"everything is flushed; the log: {self.server.log[-2000:]}", 60)
            if self.visitors.broken:
                raise self.visitors.broken[0]
            stored = self.stored()
            for page in self.oracle.pages():
                lowest, highest = self.oracle.acknowledged(page), self.oracle.highest(page)
                if not lowest <= stored.get(page, 0) <= highest:
                    raise BrokenError(f"{page}: {stored.get(page, 0)} stored, {lowest} to {highest} are right")
                self.oracle.settle(page, stored.get(page, 0))

    def stored(self) -> dict[str, int]:
        """Every count in the shards, with what was set aside for it."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            with shard.client() as client:
                for key in client.scan_iter("visits:{*}", count=5000):
                    for field, text in client.hgetall(key).items():
                        page = field.removeprefix("\taside\t")
                        if not page.startswith("\t"):
                            counts[page] = counts.get(page, 0) + int(text)
        return counts
