"""The simulation: several processes of a host, their disk and their shards, in one thread and from one seed.

Real journals, write buffers, flushers and counters run on simulated disks and shards. At every step of a process
(each system call that changes the journal, each exchange with a shard, each named step) the process may die, or
another process may run in between. Machines lose power, disks fill up, shards lose replies, execute late, go down and
come back with older data. Time passes only where the simulation says so. The oracle (`tests.support.oracle`) watches.

    python -m tests.faults.simulation --seeds 1000 --first 0
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from tests.faults.simulated_disk import Disk, SimulatedOs, SimulatedPath
from tests.faults.simulated_shard import Shard, ShardClient, write_into
from tests.support.oracle import BrokenError, Oracle
from visit_counter import steps
from visit_counter.counting.cache import LocalCache
from visit_counter.counting.counter import BufferedCounter
from visit_counter.errors import (
    CountUnknownError,
    FlushBusyError,
    JournalError,
    StartupError,
    StoreError,
    UncertainError,
    VisitCounterError,
)
from visit_counter.flush import compaction as compaction_module
from visit_counter.flush import flusher as flusher_module
from visit_counter.flush import round as flush_round_module
from visit_counter.flush.flusher import Flusher
from visit_counter.journal import buffer as buffer_module
from visit_counter.journal import directory as directory_module
from visit_counter.journal import files as files_module
from visit_counter.journal import following as following_module
from visit_counter.journal import repair as mending_module
from visit_counter.journal import segments as journal_module
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.records import Replay
from visit_counter.journal.segments import Journal, Segment
from visit_counter.journal.witnesses import Witnesses
from visit_counter.model.answers import Accepted, Answer, Ask
from visit_counter.shards import ownership as ownership_module
from visit_counter.shards import parallel as parallel_module
from visit_counter.shards import router as sharded_module
from visit_counter.shards.ring import Ring, partition_of
from visit_counter.shards.router import ShardedStore

OPERATIONS = 40
# What happens to a machine or a shard, rather than what a process does.
HAPPENINGS = frozenset(
    ("pass_time", "lose_power", "fill_disk", "shard_down", "roll_back", "late", "write_into", "sicken", "harm")
) | {"copy_data"}
# These seeds have failing syncs, and files that are removed or cut.
HARMFUL_SEEDS = range(1_000_000, 1_200_000)
# In these of them processes also start before that is mended. Not in the others: a seed that once broke a promise must
# go on to mean what it meant.
STARTING_SEEDS = range(1_100_000, 1_200_000)
# Only these look at partitions: a seed that once broke a promise must go on to mean what it meant.
LOOKING_SEEDS = (range(1_030_000, 1_040_000), range(8_000_000, 100_000_000))
NAMES = ("redis_1", "redis_2")


def _pages() -> list[str]:
    """Two partitions with two pages each, and two with one: on both shards."""
    by_partition: dict[int, list[str]] = {}
    for number in range(20_000):
        page = f"page/{number}"
        by_partition.setdefault(partition_of(page), []).append(page)
    chosen = [pages for pages in by_partition.values() if len(pages) > 1][:4]
    return [*chosen[0][:2], *chosen[1][:2], chosen[2][0], chosen[3][0]]


PAGES = _pages()


class Died(BaseException):
    """The process that runs is no more."""


class SimulatedJournal(Journal):
    """A journal whose lock nobody can wait for: whoever would wait starts again later."""

    @contextmanager
    def flush_lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the lock, or give up."""
        with ExitStack() as stack:
            try:
                stack.enter_context(super().flush_lock(wait=False))
            except BlockingIOError:
                if wait:
                    raise Died from None
                raise
            yield


class SimulatedWitnesses(Witnesses):
    """The witnesses of one host, as one of its processes sees them."""

    def __init__(self, host: Host, pid: int) -> None:
        self._locks, self._pid = host.locks, pid

    def leave(self) -> None:
        """Give the lock back."""
        self._locks.pop(self._pid, None)

    def _lock(self, kind: int) -> bool:
        others = [held for pid, held in self._locks.items() if pid != self._pid]
        if fcntl.LOCK_EX in others or (others and kind == fcntl.LOCK_EX):
            return False
        self._locks[self._pid] = kind
        return True


class Host:
    """One machine: a journal directory and a few processes."""

    def __init__(self, world: World, path: str) -> None:
        self.disk = Disk(world.random, world.point)
        self.path = path
        self.os = SimulatedOs(self.disk)
        random = world.random
        self.fsync = random.choice(("always", "everysec", "os"))
        self.retain = random.choice((0, 1, 3))
        self.cache_pages = random.choice((1, 2, 100))
        self.oracle = Oracle(self.fsync == "always")
        self.harmed = False  # somebody removed or cut files, or a sync failed
        self.handed = 0  # how often a flush took a table from memory
        self.unmended = False  # and not every process has mended that yet
        self.processes: list[Process | None] = [None] * random.choice((1, 2, 3))
        self.locks: dict[int, int] = {}  # by process: how it holds the lock of those who know the journal


class Process:
    """One process of a host: its own buffer, counter, cache and connections."""

    def __init__(self, world: World, host: Host) -> None:
        self.host = host
        self.files: set[int] = set()
        self.pid = world.next_pid = world.next_pid + 1
        self.unsynced: Counter[str] = Counter()  # acknowledged visits that may not be on the disk
        self.journal = SimulatedJournal(SimulatedPath(host.path), clock=lambda: world.now)
        self.store = ShardedStore([ShardClient(name, shard, world.point) for name, shard in world.shards.items()])
        self.cache = LocalCache(threshold=host.cache_pages, ttl_seconds=5.0, clock=lambda: world.now)
        self.buffer = WriteBuffer(self.journal, fsync=host.fsync)
        self.witnesses = SimulatedWitnesses(host, self.pid)
        self.flusher = Flusher(self.journal, self.store, retain_segments=host.retain, followed=self._followed)
        self.counter = BufferedCounter(
            self.buffer, self.store, self.cache, post_via=self.store.shard_name, stored_via=self.store.shard_name
        )
        self.counter.stored._reads = Unshared()  # type: ignore[assignment]  # all that is called of it

    def open(self) -> None:
        """Open the journal, as a worker does."""
        with ExitStack() as stack:
            try:
                begin = stack.enter_context(self.witnesses.joining(self.journal))
            except JournalError:
                raise Died from None  # as above: it would wait
            self.buffer.open(begin=begin)

    def _followed(self, segment: Segment) -> Replay | None:
        """Return what the process knows of a sealed segment; it must be what the file says."""
        if self.pid % 2:
            return None  # the flushes of half of the processes read the files, as a flush in a process of its own does
        known = self.buffer.followed(segment)
        if known is not None:
            self.host.handed += 1
            file = self.journal.read(segment)
            if (known.visits, known.known, known.sealed_as) != (file.visits, file.known, file.sealed_as):
                raise BrokenError(f"{segment}: {known} was handed to the flush, the file says {file}")
            if file.fenced or file.unreadable or not self.journal.is_whole(file):
                raise BrokenError(f"{segment} was handed to the flush, and its file needs a closer look: {file}")
        return known


class Unshared:
    """In the place of a SingleFlight: nobody can wait for another thread here, so each reads for itself."""

    def do_all(self, keys: Iterable[str], call: Callable[[Sequence[str]], dict[str, Any]]) -> dict[str, Future[Any]]:
        """Return the results in futures."""
        flights: dict[str, Future[Any]] = {key: Future() for key in keys}
        try:
            results = call(list(flights))
        except Exception as error:  # noqa: BLE001 - handed on
            for flight in flights.values():
                flight.set_exception(error)
        else:
            for key, flight in flights.items():
                flight.set_result(results[key])
        return flights


class World:
    """Everything that one seed makes happen."""

    def __init__(self, seed: int, directory: str) -> None:
        self.random = random = Random(seed)
        self.now = 0.0
        self.trace: list[str] = []
        self.died = self.next_pid = 0
        self._running: list[Process] = []
        self._steps_to_live = 0
        self._steps_to_others = 0
        loss = random.choice((0.0, 0.0, 0.1, 0.3))
        self.shards = {name: Shard(random, tells_disk=random.random() < 0.7) for name in NAMES}
        for shard in self.shards.values():
            shard.loss = loss
        self.hosts = [Host(self, f"{directory}/{number}") for number in range(random.choice((1, 1, 2, 2)))]
        self.rolled_back = False
        self.directory, self.copied = directory, False
        self.sharers: list[Host] = []  # a host and the one that its data directory was copied to
        self.may_lose: set[str] = set()  # shards that came back with older data while these had one writer's id
        self.has_lost = False  # a flush has found that visits are lost for good
        # Which faults this seed has: a mix of all hides what one alone would show.
        self.deadly = random.choice((0.0, 0.05, 0.2))
        self.others = random.choice((0.0, 0.3))
        weights = {
            "record": 10, "count": 6, "answer": 4, "tick": 5, "flush": 6, "pass_time": 2,
            "lose_power": random.choice((0, 0, 0.4)), "fill_disk": random.choice((0, 0, 0.7)),
            "shard_down": random.choice((0, 1)), "roll_back": random.choice((0, 0.7)), "late": 1, "stop": 0.3,
            "copy_data": random.choice((0, 0, 0.3)) if seed not in HARMFUL_SEEDS else 0,
            "write_into": random.choice((0, 0, 0.7)),
        }  # fmt: skip
        self.seed = seed
        self.starts_while_gone = False
        self.only_gone = False  # what is unmended: nobody may see less meanwhile
        if seed in HARMFUL_SEEDS:
            # Only there, for the same reason.
            weights |= {"sicken": random.choice((0, 0.7)), "harm": random.choice((0, 1))}
        if any(seed in seeds for seeds in LOOKING_SEEDS):
            weights["look"] = 6
        self.looks = "look" in weights
        self.operations, self.weights = list(weights), list(weights.values())

    # -- what may happen at every step -----------------------------------------------------------------------------

    def point(self, name: str) -> None:
        """Let the running process die here, or another one run."""
        if not self._running:
            return
        process = self._running[-1]
        if self._steps_to_live:
            self._steps_to_live -= 1
            if not self._steps_to_live:
                self.note(f"dies at {name}")
                raise Died
        if self._steps_to_others and len(self._running) < 2:
            self._steps_to_others -= 1
            if not self._steps_to_others:
                self._run_another(process, name)

    def _run_another(self, running: Process, name: str) -> None:
        others = [
            (host, index)
            for host in self.hosts
            for index, process in enumerate(host.processes)
            if process is not running or not running.buffer.lock._is_owned()  # type: ignore[attr-defined]  # not in its types
        ]
        kept = self._steps_to_live, steps.hook
        self._steps_to_live = 0
        self.note(f"-- at {name}")
        for _ in range(self.random.randint(1, 3)):
            if others:
                host, index = self.random.choice(others)
                # In the same process it is another thread.
                more = ("look",) if self.looks else ()
                operation = self.random.choice(("record", "count", "answer", "tick", "flush", "late", *more))
                self.note(f"   {operation}")
                self.do(operation, host, index)
        self.note("--")
        self._steps_to_live, steps.hook = kept

    @contextmanager
    def running(self, process: Process) -> Iterator[None]:
        """Make a process the one that runs."""
        host = process.host
        kept = vars(journal_module)["os"], SimulatedPath.__dict__.get("disk")
        _use(host.os, host.disk)
        outer = host.disk.open_files, host.disk.pid
        host.disk.open_files, host.disk.pid = process.files, process.pid
        self._running.append(process)
        try:
            yield
        finally:
            self._running.pop()
            host.disk.open_files, host.disk.pid = outer
            _use(*kept)

    # -- operations ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run one seed to its end, and compare."""
        for _ in range(OPERATIONS):
            [operation] = self.random.choices(self.operations, self.weights)
            host = self.random.choice(self.hosts)
            index = self.random.randrange(len(host.processes))
            self.note(f"{self.hosts.index(host)}.{index} {operation}")
            self._steps_to_live = self.random.randint(1, 40) if self.random.random() < self.deadly else 0
            self._steps_to_others = self.random.randint(1, 30) if self.random.random() < self.others else 0
            self.do(operation, host, index)
        self._end()

    def do(self, operation: str, host: Host, index: int) -> None:
        """Do one operation on one process, which may die of it."""
        if operation in HAPPENINGS:
            getattr(self, f"_{operation}")(host)
            return
        process = host.processes[index]
        try:
            if process is None:
                if host.unmended and not self.starts_while_gone:
                    return
                process = Process(self, host)
                with self.running(process):
                    process.open()
                host.processes[index] = process
            with self.running(process):
                getattr(self, f"_{operation}")(process)
        except Died:
            self._bury(host, process)
        except (OSError, StartupError, JournalError) as error:
            if not (host.disk.full or host.disk.sick or host.unmended):
                raise
            self.note(f"refused: {error}")
            if host.processes[index] is not process:
                self._bury(host, process)
        if operation == "stop" and process is not None:
            self._bury(host, process)

    def _bury(self, host: Host, process: Process | None) -> None:
        self._steps_to_live = 0
        self.died += 1
        if process is None:
            return
        if process in host.processes:
            host.processes[host.processes.index(process)] = None
        for descriptor in process.files:
            os.close(descriptor)
        process.files.clear()
        process.witnesses.leave()
        process.buffer.descriptor = -1

    def _record(self, process: Process) -> None:
        page, visits = self.random.choice(PAGES), self.random.choice((1, 1, 3))
        oracle = process.host.oracle
        lowest = max(self._lowest(process, page), oracle.acknowledged(page) + visits)
        oracle.begin(page, visits)
        try:
            answer = process.counter.record(page, visits)
        except (JournalError, UncertainError) as error:
            self._refuse(oracle, page, visits, error)
            return
        oracle.acknowledge(page, visits)
        process.unsynced[page] += visits
        self.note(f"   record {page} {answer}")
        if isinstance(answer, Accepted):
            self._see_pending(oracle, page, answer.pending)
        else:
            self._see(process, page, answer, lowest)

    def _count(self, process: Process) -> None:
        page = self.random.choice(PAGES)
        lowest = self._lowest(process, page)
        try:
            answer = process.counter.count(page)
        except (CountUnknownError, StoreError) as error:
            self.note(f"   count {page}: {error}")
            return
        self.note(f"   count {page} {answer}")
        self._see(process, page, answer, lowest)

    def _refuse(self, oracle: Oracle, page: str, visits: int, error: VisitCounterError) -> None:
        self.note(f"   refused {page}: {error}")
        oracle.refused(page, visits, surely=not isinstance(error, UncertainError))

    def _answer(self, process: Process) -> None:
        requests = [
            Ask(self.random.random() < 0.5, self.random.choice(PAGES)) for _ in range(self.random.randint(1, 5))
        ]
        wait = self.random.random() < 0.5
        oracle = process.host.oracle
        before = {ask.page: self._lowest(process, ask.page) for ask in requests}
        lowest = {page: oracle.acknowledged(page) for page in before}
        for ask in requests:
            if ask.is_visit:
                oracle.begin(ask.page, 1)
        outcomes = process.counter.answer(requests, wait=wait)
        # Requests of one call came at the same time: their answers have no order.
        seen: dict[str, list[Answer]] = {}
        for ask, outcome in zip(requests, outcomes, strict=True):
            self.note(f"   {'+' if ask.is_visit else '='} {ask.page} {outcome!r}")
            if ask.is_visit:
                if isinstance(outcome, Answer | Accepted):
                    oracle.acknowledge(ask.page, 1)
                    process.unsynced[ask.page] += 1
                    lowest[ask.page] += 1
                else:
                    self._refuse(oracle, ask.page, 1, outcome or VisitCounterError("not recorded"))
            if isinstance(outcome, Answer):
                seen.setdefault(ask.page, []).append(outcome)
            elif isinstance(outcome, Accepted):
                self._see_pending(oracle, ask.page, outcome.pending)
            elif outcome is None and wait:
                raise BrokenError(f"{ask.page}: no answer")
        for page, found in seen.items():
            self._see(process, page, min(found), before[page])
            self._see(process, page, max(found), max(before[page], lowest[page]))

    def _see_pending(self, oracle: Oracle, page: str, pending: int) -> None:
        if not self.copied:  # else others' visits may be pending, too
            oracle.check_at_most(page, pending)

    def _lowest(self, process: Process, page: str) -> int:
        """Return what a reader of the host who asks now must see, whichever of its processes answers."""
        oracle = process.host.oracle
        # With other hosts: what they counted and a shard has lost is only known as long as a cache has room for it.
        return max(oracle.acknowledged(page), oracle.seen[page] if self._stays_known(process.host) else 0)

    def _stays_known(self, host: Host) -> bool:
        """Tell whether a host knows for ever what it has once read of what others counted."""
        if len(self.hosts) == 1 or not self.rolled_back:
            return True
        return host.cache_pages > len(PAGES) and not self.has_lost

    def _see(self, process: Process, page: str, answer: Answer, lowest: int) -> None:
        # While files are unmended, others' latest visits may be nowhere but in their memory.
        if (process.host.unmended and not self.only_gone) or _shard_of(page) in self.may_lose:
            lowest = 0
        process.host.oracle.saw(page, answer.visits, lowest, strict=len(self.hosts) == 1)
        total = sum(one.oracle.highest(page) for one in self.hosts)
        if answer.visits > total and not self.copied:
            raise BrokenError(f"{page}: {answer.visits} answered where {total} are possible")

    def _tick(self, process: Process) -> None:
        # What another thread records while this one syncs may come too late for it.
        unsynced, process.unsynced = process.unsynced, Counter()
        process.counter.tick()
        if process.host.fsync == "everysec" and not process.buffer.halted:
            process.host.oracle.synced(unsynced)
        else:
            process.unsynced.update(unsynced)

    def _look(self, process: Process) -> None:
        process.counter.stored.look()

    def _flush(self, process: Process) -> None:
        if process.host.unmended:
            process.counter.tick()  # as a worker does before it flushes
            if process.buffer.halted:
                return
        try:
            result = process.flusher.flush(wait=False)
            self.note(f"   flushed {result.visits} {result.error}")
            self.has_lost |= bool(Checkpoint.load(process.journal.state_path).losses)
            if result.error:
                self.note(f"   {result.error}")
        except (FlushBusyError, JournalError) as error:
            self.note(f"   {error}")

    def _stop(self, process: Process) -> None:
        process.flusher.flush(wait=False) if len(self._running) < 2 else None
        process.buffer.close()

    def _pass_time(self, host: Host) -> None:
        del host
        self.now += self.random.choice((0.5, 6.0))

    def _fill_disk(self, host: Host) -> None:
        host.disk.full = 0.0 if host.disk.full else self.random.choice((0.3, 1.0))
        self.note(f"   disk full: {host.disk.full}")

    def _shard_down(self, host: Host) -> None:
        del host
        name = self.random.choice(NAMES)
        self.shards[name].down = not self.shards[name].down
        self.note(f"   {name} down: {self.shards[name].down}")

    def _sicken(self, host: Host) -> None:
        host.disk.sick = 0.0 if host.disk.sick else self.random.choice((0.1, 0.5, 1.0))
        host.harmed = True
        self.note(f"   disk sick: {host.disk.sick}")

    def _harm(self, host: Host) -> None:
        """Remove or cut files under processes that know them; at least one lives until all is mended."""
        living = [index for index, process in enumerate(host.processes) if process]
        if self._running or not living:
            return
        self._steps_to_live = self._steps_to_others = 0
        host.disk.full = host.disk.sick = 0.0
        for index in living:
            self.do("tick", host, index)
        survivor = self.random.choice(living)
        for _ in range(self.random.choice((0, 0, 1, 2))):
            self.do("record", host, survivor)
        kind = self._do_harm(host, survivor)
        host.harmed = host.unmended = True
        # Who starts after a cut takes what follows it for what was there, as who had read less does: see `_do_harm`.
        self.starts_while_gone = self.seed in STARTING_SEEDS and kind != "cut"
        self.only_gone = self.starts_while_gone and kind == "current"
        anyone = range(len(host.processes)) if self.starts_while_gone else living
        for _ in range(self.random.choice((0, 0, 1, 3, 5))):
            index = self.random.choice(anyone)
            operation = self.random.choice(("record", "count", "answer", "tick", "flush", "pass_time"))
            if operation == "pass_time" and kind == "waiting":
                continue  # a flush would give it up, of which some shard may have got its part
            self.note(f"   .{index} {operation}")
            is_deadly = index != survivor and self.random.random() < self.deadly
            self._steps_to_live = self.random.randint(1, 40) if is_deadly else 0
            self._steps_to_others = self.random.randint(1, 30) if self.random.random() < self.others else 0
            self.do(operation, host, index)
        self._steps_to_live = self._steps_to_others = 0
        if self.starts_while_gone:
            living = [index for index, process in enumerate(host.processes) if process]
        self.random.shuffle(living)
        for index in living:
            self.note(f"   .{index} mends")
            self.do("tick", host, index)
        for index in living:
            if self.starts_while_gone:
                self.do("tick", host, index)  # what was written anew since it looked
            process = host.processes[index]
            if process and process.buffer.absent:
                # Nobody knows the segment. That is certain only once every process has had the time to write it anew.
                self.now += 4
                self.do("tick", host, index)
                process = host.processes[index]
            if process and process.buffer.halted:
                raise BrokenError(f"visits stay refused: {process.buffer.halted}")
        host.unmended = False

    def _do_harm(self, host: Host, survivor: int) -> str:
        process = host.processes[survivor]
        assert process is not None
        host.disk.directory_synced()
        buffer, path = process.buffer, host.path
        current = f"{path}/{buffer.tables.current.last:010}.log"
        waiting = [table for table in buffer.tables.sealed if table.last > buffer.included_to]
        kind = self.random.choice(("current", "everything", "waiting", "writer", "state", "cut", "cut"))
        if kind == "everything" and self.weights[self.operations.index("roll_back")]:
            kind = "current"  # what a shard lost is sent again from segments that no process keeps in its memory
        if kind == "waiting" and waiting:
            table = self.random.choice(waiting)
            # It is not there where it was merged, and the disk was too full to tell this process so.
            with suppress(FileNotFoundError):
                os.unlink(f"{path}/{Segment(table.first, table.last).name}")  # noqa: PTH108 - called often
        elif kind == "everything":
            shutil.rmtree(path)
        elif kind == "cut":
            # Below what each of them has read: who has read less takes what follows the cut for what was there.
            if size := min(one.buffer.offset for one in host.processes if one):
                os.truncate(current, self.random.choice((0, self.random.randrange(size))))
        else:
            name = {"writer": "writer", "state": "state.json"}.get(kind, os.path.basename(current))  # noqa: PTH119 - as the code under test calls it
            with suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")  # noqa: PTH108 - as above
        host.disk.directory_synced()
        self.note(f"   harm: {kind}")
        return kind

    def _roll_back(self, host: Host) -> None:
        del host
        name = self.random.choice(NAMES)
        lost = self.shards[name].roll_back()
        self.rolled_back |= bool(lost)
        ids = {_writer_of(Path(one.path)) for one in self.sharers}
        if lost and len(ids) == 1:
            self.may_lose.add(name)
        self.note(f"   {name} rolled back {lost} changes")

    def _late(self, host: Host) -> None:
        del host
        for shard in self.shards.values():
            shard.execute_late()

    def _write_into(self, host: Host) -> None:
        """Somebody writes into a shard, or mends what was written there."""
        if self._running or not os.path.isdir(host.path):  # noqa: PTH112 - called often
            return
        state = Checkpoint.load(Path(host.path) / "state.json")
        name = self.random.choice(NAMES)
        # A flush under way, or with no reply, may have changed what is confirmed.
        confirmed = {} if state.attempted else state.confirmed
        mine = [page for page in PAGES if _shard_of(page) == name]
        self.note(f"   {name}: {write_into(self.shards[name], state.writer, confirmed, mine)}")

    def _copy_data(self, host: Host) -> None:
        """Copy a host's data directory as it is, and let another host go on with the copy."""
        if self._running or self.copied or len(self.hosts) > 2 or not os.path.isdir(host.path):  # noqa: PTH112 - as the code under test calls it
            return
        self.copied = True
        self.sharers = [host]
        path = f"{self.directory}/{len(self.hosts)}"
        # Without the names under which the simulated disk keeps what a power loss may bring back.
        shutil.copytree(host.path, path, ignore=shutil.ignore_patterns("*.kept*"))
        copy = Host(self, path)
        copy.disk.all_synced(path)
        self.hosts.append(copy)
        self.sharers.append(copy)

    def _lose_power(self, host: Host) -> None:
        if self._running or host.unmended or not os.path.isdir(host.path):  # noqa: PTH112 - called often
            return
        for process in host.processes:
            self._bury(host, process)
        host.disk.lose_power(host.path)
        host.oracle.power_lost()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.note("end")
        self._steps_to_live = self._steps_to_others = 0
        for shard in self.shards.values():
            shard.down, shard.loss = False, 0.0
            shard.mend()
        for host in self.hosts:
            host.disk.full = host.disk.sick = 0.0
            for index, process in enumerate(host.processes):
                if process and host.harmed:
                    self.do("tick", host, index)
            # A flush with nothing at all to look at leaves what was written into a shard as it is.
            self.do("record", host, 0)
        for _ in range(3):
            for host in self.hosts:
                self._flush_all(host)
            self._late(self.hosts[0])
        for page in PAGES:
            self._compare(page)
        for host in self.hosts:
            for index in range(len(host.processes)):
                self.do("tick", host, index)
                process = host.processes[index]
                assert process is not None
                with process.buffer.lock:
                    if process.buffer.pending_totals()[0]:
                        raise BrokenError(f"{process.buffer.pending_totals()} pending after the last flush")
                damage = [note for note in process.buffer.state.damage if not _is_written_by_somebody(note)]
                if damage and not (host.oracle.lost_power or host.harmed or self.copied):
                    raise BrokenError(f"damage without a cause: {damage}")
                self._compare_answers(host, process)

    def _flush_all(self, host: Host) -> None:
        process = Process(self, host)
        with self.running(process):
            process.open()
            process.counter.tick()
            self.now += 10  # after this the flush goes on with what was mended
            for _ in range(3):
                result = process.flusher.flush(wait=False)
            if result.error:
                raise BrokenError(f"the last flush failed: {result.error}")
        self._bury(host, process)

    def _compare(self, page: str) -> None:
        stored = sum(shard.counts.get(page, 0) for shard in self.shards.values())
        lowest = sum(host.oracle.acknowledged(page) for host in self.hosts)
        highest = sum(host.oracle.highest(page) for host in self.hosts)
        if _shard_of(page) in self.may_lose:
            lowest = 0  # the other journal's watermark may stand where it would be seen what the shard has lost
        # What was pending in a journal that was copied is counted by both hosts.
        if stored < lowest or (stored > highest and not self.copied):
            raise BrokenError(f"{page}: {stored} stored, {lowest} to {highest} are right")

    def _compare_answers(self, host: Host, process: Process) -> None:
        self.now += 6
        if self.looks:  # what this finds fresh is answered from memory, and must be right all the same
            with self.running(process):
                process.counter.stored.look()
        for page in PAGES:
            stored = sum(shard.counts.get(page, 0) for shard in self.shards.values())
            with self.running(process):
                answer = process.counter.count(page)
            # A host that a journal was copied to may have added what was pending then to a count that had it already.
            if answer.visits < stored or (answer.visits > stored and not self.copied):
                raise BrokenError(f"{page}: {answer} after the last flush, {stored} stored")
        del host

    def note(self, text: str) -> None:
        """Remember what happened, for the trace of a failing seed."""
        self.trace.append(text)


def _writer_of(path: Path) -> str:
    """Return the id that a journal sends under; a power loss may have taken the file that names it."""
    with suppress(FileNotFoundError):
        return Checkpoint.load(path / "state.json").writer or (path / "writer").read_text().strip()
    return ""


def _is_written_by_somebody(note: str) -> bool:
    return any(text in note for text in ("which no flush wrote", "is no partition", "holds no count"))


_RING = Ring(NAMES)


def _shard_of(page: str) -> str:
    return _RING.shard_of(partition_of(page))


def _ring(names: Sequence[str]) -> Ring:
    assert tuple(names) == NAMES
    return _RING


def _use(simulated: Any, disk: Any) -> None:
    for module in (
        files_module,
        directory_module,
        journal_module,
        following_module,
        buffer_module,
        mending_module,
        flusher_module,
        flush_round_module,
    ):
        module.os = simulated  # type: ignore[attr-defined]  # set for this process
    SimulatedPath.disk = disk


@contextmanager
def simulated_modules() -> Iterator[None]:
    """Put the simulation's calls in the place of the real ones, and put these back afterwards."""
    replaced: tuple[tuple[Any, str, Any], ...] = (
        # In the order of the shards, in this thread: a seed must always do the same.
        (sharded_module, "in_parallel", lambda calls: [call() for call in calls]),
        (parallel_module, "in_parallel", lambda calls: [call() for call in calls]),
        # The same for all: making one takes milliseconds.
        (ownership_module, "Ring", _ring),
        (directory_module, "file_system_of", lambda *_: ""),
        (compaction_module, "COMPACT_FROM", 2),
    )
    kept = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, stand_in in replaced:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, real in kept:
            setattr(module, name, real)
        _use(os, None)
        steps.hook = None


def run_seed(seed: int, directory: str) -> World:
    """Run one seed in a directory of its own; raises BrokenError, with the trace in `World.trace`."""
    path = f"{directory}/{seed}"
    os.mkdir(path)  # noqa: PTH102 - called often
    world = World(seed, path)
    steps.hook = world.point
    try:
        world.run()
    except Exception as error:
        error.args = (*error.args, world.trace)
        raise
    finally:
        steps.hook = None
        for host in world.hosts:
            for process in host.processes:
                if process is not None:
                    world._bury(host, process)
        shutil.rmtree(path)
    return world


def run_seeds(seeds: range, progress: Callable[[int], None] = lambda _: None) -> SimpleNamespace:
    """Run seeds until one breaks; return how many ran, what broke, and how often a process died."""
    found = SimpleNamespace(ran=0, died=0, seed=None, error=None)
    logging.disable(logging.CRITICAL)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112 - as the code under test calls it
    try:
        with simulated_modules(), tempfile.TemporaryDirectory(dir=memory) as directory:
            for seed in seeds:
                try:
                    found.died += run_seed(seed, directory).died
                except Exception as error:  # noqa: BLE001 - whatever broke is the finding
                    found.seed, found.error = seed, error
                    return found
                found.ran += 1
                progress(found.ran)
    finally:
        logging.disable(logging.NOTSET)
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--on", action="store_true", help="go on after a seed that breaks")
    options = parser.parse_args()
    started, first, end, broken = time.monotonic(), options.first, options.first + options.seeds, []
    while first < end:
        found = run_seeds(range(first, end))
        if found.seed is None:
            break
        broken.append(found.seed)
        first = found.seed + 1
        if not options.on:
            *arguments, trace = found.error.args
            print("\n".join(trace))
            found.error.args = tuple(arguments)
            traceback.print_exception(found.error)
            break
        print(found.seed, type(found.error).__name__, *found.error.args[:-1], flush=True)
    seconds = time.monotonic() - started
    print(f"{options.seeds} seeds, {len(broken)} broken {broken[:20]}, {seconds:.1f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
