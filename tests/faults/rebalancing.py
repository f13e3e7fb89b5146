"""Rebalances under load: hosts that count, read and flush all the time, and an oracle that looks at every answer.

    acknowledged on this host  <=  count a host answers  <=  sent on all hosts,   and no reader sees a count go down

At the end everything is flushed and every page must have exactly what was acknowledged. Hosts are threads of this
process with journals of their own on disk; shards are real servers; a rebalance that is killed is a process of its own.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.support.oracle import BrokenError
from tests.support.redis_servers import Server
from visit_counter.config.shard_urls import Shard
from visit_counter.counting.cache import LocalCache
from visit_counter.counting.counter import BufferedCounter
from visit_counter.errors import CountUnknownError
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal
from visit_counter.model.answers import Answer
from visit_counter.shards.rebalance.rebalance import Rebalance, gather_stores
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from visit_counter.shards.rebalance.plan import Plan

SHARED_PAGES = 400
FLUSH_SECONDS = 0.2
# Short, so that readers ask the shards nearly every time.
CACHE_SECONDS = 0.02
LOCK_SECONDS = 0.5

# argv: name=url of the wanted shards, then the step to be killed at as name:times, or "-".
_PROCESS = f"""
import os, signal, sys
from visit_counter import steps
from visit_counter.shards.rebalance.rebalance import Rebalance, gather_stores
from visit_counter.config.shard_urls import Shard
*words, kill = sys.argv[1:]
name, _, times = kill.partition(":")
left = int(times or 0)
def hook(step):
    global left
    if step == name:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
steps.hook = hook
shards = [Shard(*word.split("=", 1)) for word in words]
print("begun", flush=True)
Rebalance([shard.name for shard in shards], gather_stores(shards), lock_seconds={LOCK_SECONDS}).run()
"""


class Ledger:
    """What was sent and acknowledged, on all hosts together and on each."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()


class LoadedHost:
    """A data directory with two processes' worth of counters: one is visited, the other is read; and a flush."""

    def __init__(
        self, folder: Path, shards: Sequence[Shard], ledger: Ledger, seed: int, *, complete: bool = True
    ) -> None:
        self.name = folder.name
        self.reads = self.unknown = 0
        self.broken: list[str] = []
        self.complete = complete  # it knows all shards: every count can be read
        self._ledger = ledger
        self._own: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._random = random.Random(seed)
        self.store = ShardedStore(
            [RedisStore(shard, connect_seconds=5, read_seconds=5, apply_seconds=10) for shard in shards], shared=True
        )
        self.journal = Journal(folder / "journal")
        self.flusher = Flusher(self.journal, self.store, retain_segments=5)
        self._visited, self._read = self._counter(), self._counter()
        self._stop = Event()
        self._threads = [
            Thread(target=self._until_stopped, args=(work, pause), daemon=True)
            for work, pause in ((self._visit, 0.001), (self._look, 0.001), (self._flush, FLUSH_SECONDS))
        ]

    def _counter(self) -> BufferedCounter:
        buffer = WriteBuffer(self.journal, fsync="os")
        buffer.open()
        name = self.store.shard_name
        cache = LocalCache(threshold=5_000, ttl_seconds=CACHE_SECONDS)
        return BufferedCounter(buffer, self.store, cache, post_via=name, stored_via=name)

    def start(self) -> None:
        """Begin to count, read and flush."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the load; what is pending stays pending."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """End and close everything."""
        if self._threads[0].ident is not None:
            self.stop()
        for counter in (self._visited, self._read):
            counter.buffer.close()
        self.store.close()

    def _until_stopped(self, work: Callable[[], None], pause: float) -> None:
        while not self._stop.wait(pause):
            try:
                work()
            except Exception as error:  # noqa: BLE001 - told by the check at the end
                self.broken.append(f"{self.name}: {type(error).__name__}: {error}")
                return

    def _visit(self) -> None:
        unique = self._random.random() < 0.3
        page = f"only/{self.name}/{len(self._own)}" if unique else f"page/{self._random.randrange(SHARED_PAGES)}"
        with self._ledger.lock:
            self._ledger.sent[page] += 1
        answer = self._visited.record(page)
        with self._ledger.lock:
            self._ledger.acknowledged[page] += 1
        self._own[page] += 1
        if isinstance(answer, Answer):
            self._check(page, answer.visits, self._own[page])
        elif self.complete:
            raise BrokenError(f"{page}: answered {answer.status}")

    def _look(self) -> None:
        page = f"page/{self._random.randrange(SHARED_PAGES)}"
        lowest = self._own[page]
        seen = self._seen[page]
        try:
            count = self._read.count(page).visits
        except CountUnknownError:
            self.unknown += 1
            if self.complete:
                raise
            return
        self.reads += 1
        self._check(page, count, max(lowest, seen))
        self._seen[page] = count

    def _check(self, page: str, count: int, lowest: int) -> None:
        with self._ledger.lock:
            highest = self._ledger.sent[page]
        if not lowest <= count <= highest:
            raise BrokenError(f"{page}: {count} answered, where {lowest} to {highest} are possible")

    def _flush(self) -> None:
        self.store.refresh_shard_map()
        self.flusher.flush()
        for counter in (self._visited, self._read):
            counter.tick()

    def damage(self) -> list[str]:
        """Return what the flush took for damage."""
        return Checkpoint.load(self.journal.state_path).damage

    def drain(self) -> str:
        """Flush what is pending; return what went wrong."""
        self.store.refresh_shard_map()
        return self.flusher.flush().error


class Trial:
    """Servers, emptied, and hosts under load on them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.ledger = Ledger()
        self.hosts: list[LoadedHost] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def host(self, shards: Sequence[Shard], *, complete: bool = True) -> LoadedHost:
        """Start another host with this list of shards."""
        path = self.folder / f"host_{len(self.hosts)}"
        host = LoadedHost(path, shards, self.ledger, self.random.randrange(1 << 30), complete=complete)
        self._stack.callback(host.close)
        self.hosts.append(host)
        host.start()
        return host

    def wait_for_visits(self, visits: int, seconds: float = 60) -> None:
        """Wait until so many more visits were acknowledged."""
        goal = self.visits + visits
        deadline = time.monotonic() + seconds
        while self.visits < goal and not any(host.broken for host in self.hosts):
            if time.monotonic() > deadline:
                raise BrokenError(f"{self.visits} of {goal} visits after {seconds} s")
            time.sleep(0.01)

    @property
    def visits(self) -> int:
        """How many visits were acknowledged so far."""
        return self.ledger.acknowledged.total()

    def check(self, final: Sequence[Shard]) -> None:
        """End the load, bring everything in, and compare every page. Raises BrokenError."""
        for host in self.hosts:
            host.stop()
        broken = [text for host in self.hosts for text in host.broken]
        with ExitStack() as stack:
            store = ShardedStore([RedisStore(shard, connect_seconds=5, read_seconds=5) for shard in final], shared=True)
            stack.callback(store.close)
            for host in self.hosts:
                if not host.complete:
                    # What a host with an old list could not place is brought in by one with the new list.
                    host.flusher.store = store
                broken += [f"{host.name}: {error}" for error in [host.flusher.flush().error] if error]
                broken += [f"{host.name}: {note}" for note in host.damage()]
            pages = sorted(self.ledger.sent)
            for page, stored in zip(pages, store.read("nobody", pages), strict=True):
                if stored.visits != self.ledger.acknowledged[page]:
                    broken.append(f"{page}: {stored.visits} stored, {self.ledger.acknowledged[page]} acknowledged")
        if broken:
            raise BrokenError("; ".join(broken[:5]))


class Figures(NamedTuple):
    """What a trial went through."""

    visits: int
    reads: int
    partitions: int
    kills: int


def rebalance(wanted: Sequence[Shard], former: Sequence[Shard] = (), *, set_aside: bool = False) -> Plan:
    """Rebalance in this process."""
    stores = gather_stores(wanted, former)
    try:
        return Rebalance([shard.name for shard in wanted], stores, lock_seconds=LOCK_SECONDS).run(set_aside=set_aside)
    finally:
        for store in stores.values():
            store.close()


def plan(wanted: Sequence[Shard]) -> Plan:
    """Return what a rebalance would do."""
    stores = gather_stores(wanted)
    try:
        return Rebalance([shard.name for shard in wanted], stores).plan()
    finally:
        for store in stores.values():
            store.close()


def start_process(wanted: Sequence[Shard], kill_at: str = "-") -> subprocess.Popen[str]:
    """Start a rebalance as a process; return once it is about to begin."""
    words = [f"{shard.name}={shard.url}" for shard in wanted]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROCESS, *words, kill_at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109 - the folder the tests are run from
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def under_load(folder: Path, shards: Sequence[Shard], seed: int) -> Figures:
    """Go from two shards to three and back while two hosts count; `shards`: three empty servers. Raises BrokenError."""
    two, three = shards[:2], shards
    with Trial(folder, seed) as trial:
        # This host keeps the old list: it cannot place what is on the third shard, and has it wait.
        trial.host(two, complete=False)
        trial.wait_for_visits(200)
        trial.host(three)
        moved = len(rebalance(three).moves)
        trial.wait_for_visits(200)
        moved += len(rebalance(two).moves)
        trial.wait_for_visits(200)
        trial.check(two)
        return Figures(trial.visits, sum(host.reads for host in trial.hosts), moved, 0)


def killed(folder: Path, shards: Sequence[Shard], seed: int) -> Figures:
    """As `under_load`, three rebalances each way killed at random instants; `shards`: as there. Raises BrokenError."""
    two, three = shards[:2], shards
    kills = moved = 0
    with Trial(folder, seed) as trial:
        trial.host(three, complete=True)
        trial.wait_for_visits(100)
        rebalance(two)
        trial.host(three)
        for wanted in (three, two):
            for attempt in range(3):
                process = start_process(wanted)
                time.sleep(trial.random.uniform(0, 0.25 * (attempt + 1)))
                process.kill()
                process.communicate()
                kills += 1
            moved += len(rebalance(wanted).moves)
            trial.wait_for_visits(50)
        trial.check(two)
        return Figures(trial.visits, sum(host.reads for host in trial.hosts), moved, kills)


def row(
    trial: Callable[[Path, Sequence[Shard], int], Figures],
) -> Callable[[Path, int, int, Callable[[int], None]], str]:
    """Return a row of the campaign (see `tests.faults.__main__`) that runs a trial again and again."""

    def run(folder: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
        totals: Counter[str] = Counter()
        with ExitStack() as stack:
            servers = [stack.enter_context(closing(Server(folder / name))) for name in "abc"]
            shards = [Shard(name, server.shard.url) for name, server in zip("abc", servers, strict=True)]
            for number in range(trials):
                for server in servers:
                    server.call("FLUSHALL")
                try:
                    totals.update(trial(folder / f"trial_{number}", shards, seed + number)._asdict())
                except BrokenError as error:
                    raise BrokenError(f"seed {seed + number}: {error}") from None
                progress(number + 1)
        return ", ".join(f"{number:,} {name}" for name, number in totals.items() if number)

    run.__doc__ = (trial.__doc__ or "").partition("; `shards`")[0]
    return run
