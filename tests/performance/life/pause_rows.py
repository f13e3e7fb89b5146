"""Rows of what visitors must wait for: pauses of a worker, restarts, the start, and a worker that was killed."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

from tests.performance import wrk
from tests.performance.life.bench import INSIDE, Line, at_most, end_service, visit_each
from tests.performance.life.probe import Probe, Wait, first_answer
from tests.performance.wrk import Requests
from tests.support import processes
from tests.support.ports import free_port, free_ports
from tests.support.servers import REPOSITORY, GunicornServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.performance.life.bench import Bench

_PAUSE_SECONDS = 0.02
# A steady load that leaves the worker time to rest: some thousand requests a second.
_MIXED = Requests("POST POST POST GET", "visitor", "zipf", pause_ms=5)
_STARTS = 5


def pauses(bench: Bench) -> list[Line]:
    """The longest pause of a worker with a full cache under mixed load; which ones were garbage collections."""
    with bench.own_folder() as noted:
        path = f"{INSIDE}{os.pathsep}{REPOSITORY}"
        with bench.service(PYTHONPATH=path, LIFE_GC_DIR=str(noted)) as (server, _), bench.own_folder() as folder:
            visit_each(server.port, range(bench.effort.cached_pages))
            (worker,) = server.worker_pids
            with Probe(server.port) as probe:
                load = wrk.start(server.url, _MIXED, bench.effort.pause, folder, core=bench.load_core)
                # A read whose shard does not answer in time is an error of its own.
                done = wrk.result(load, errors_allowed=True)
            collections = _collections(noted / str(worker))
    long = [wait for wait in probe.slow if wait.seconds >= _PAUSE_SECONDS]
    collected = sum(any(_explains(one, wait) for one in collections) for wait in long)
    longest = max((wait.seconds for wait in probe.slow), default=0.0)
    longest_collection = max((one.seconds for one in collections), default=0.0)
    return [
        at_most(
            f"longest pause of a worker with a full cache, {bench.effort.pause / 60:.0f} minutes of mixed load",
            longest * 1e3,
            20,
            "ms",
            f" ({len(long)} pauses of 20 ms or more, {collected} of them garbage collections, the longest of which "
            f"{longest_collection * 1e3:.0f} ms; {probe.answers:,} probes; {done.wrong} of {done.requests:,} failed)",
        )
    ]


def _collections(path: Path) -> list[Wait]:
    """Return the collections that a process has noted."""
    if not path.exists():
        return []
    return [Wait(*map(float, line.split()[:2])) for line in path.read_text(encoding="ascii").splitlines()]


def _explains(collection: Wait, wait: Wait) -> bool:
    """Tell whether a collection took the greater part of a wait."""
    overlap = min(collection.answered, wait.answered) - max(collection.sent, wait.sent)
    return overlap > wait.seconds / 2


def killed_worker(bench: Bench) -> list[Line]:
    """The load of two workers after one was killed: of connections that are kept, and of new ones."""
    window = bench.effort.requests
    with bench.service(workers=2) as (server, _), bench.own_folder() as folder:
        seconds = bench.effort.after_kill + 2 * window + 5
        load = wrk.start(server.url, Requests(), seconds, folder, core=bench.load_core)
        time.sleep(window)
        os.kill(server.worker_pids[0], signal.SIGKILL)
        wait_until(lambda: len(server.worker_pids) == 2, "a new worker runs")
        time.sleep(bench.effort.after_kill)
        kept = _greatest_share(server.worker_pids, lambda: time.sleep(window))
        wrk.result(load, errors_allowed=True)  # those of the killed worker
        new = _greatest_share(
            server.worker_pids, lambda: wrk.run(server.url, Requests(), window, folder, core=bench.load_core)
        )
    after = f"{bench.effort.after_kill:.0f} s after one was killed"
    return [
        at_most(f"greater load of two workers, {after}, kept connections", kept * 100, 60, "%"),
        at_most("the same, new connections", new * 100, 60, "%"),
    ]


def _greatest_share(pids: list[int], meanwhile: Callable[[], object]) -> float:
    before = [processes.cpu_seconds([pid]) for pid in pids]
    meanwhile()
    used = [processes.cpu_seconds([pid]) - was for pid, was in zip(pids, before, strict=True)]
    return max(used) / max(sum(used), 0.01)


def gaps(bench: Bench) -> list[Line]:
    """The longest gap between two answers: kill -9 of the whole service and start, SIGTERM and start, HUP, USR2."""
    events: tuple[tuple[str, float, Callable[[Bench, GunicornServer], None]], ...] = (
        ("kill -9 of the whole service and start", 0.3, _kill_and_start),
        ("SIGTERM and start", 0.3, _stop_and_start),
        ("HUP", 0.0, _reload),
        ("USR2, and SIGTERM to the old one", 0.0, _upgrade),
    )
    lines = []
    for name, goal, event in events:
        found = []
        for number in range(bench.effort.turns):
            bench.progress(f"turn {number + 1} of {bench.effort.turns}: {name}")
            with bench.service(workers=2) as (server, _), Probe(server.port) as probe:
                time.sleep(1)
                usual = probe.longest_gap
                event(bench, server)
                found.append(probe.longest_gap)
                processes.kill(processes.session(server.pid))
        # A gap no longer than those of a service that is left alone is none.
        reached = statistics.median(found) <= max(goal, usual, 0.05)
        lines.append(
            Line(
                f"longest gap between answers: {name}",
                f"{statistics.median(found):.3f} s (longest {max(found):.3f} s; undisturbed {usual:.3f} s)",
                f"{goal:.1f} s" + ("" if goal else ", that is 0.05 s at most"),
                reached,
            )
        )
    return lines


def _kill_and_start(bench: Bench, server: GunicornServer) -> None:
    end_service(server)
    _start_again(bench, server)


def _stop_and_start(bench: Bench, server: GunicornServer) -> None:
    server.stop()
    _start_again(bench, server)


def _start_again(bench: Bench, server: GunicornServer) -> None:
    with wrk.pinned(bench.server_core):
        server.spawn()
    first_answer(server.port, "/health", server.runs)
    time.sleep(1)


def _reload(_: Bench, server: GunicornServer) -> None:
    before = set(server.worker_pids)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: len(server.worker_pids) == 2 and not before & set(server.worker_pids), "new workers run", 60)
    time.sleep(3)


def _upgrade(_: Bench, server: GunicornServer) -> None:
    old = set(processes.tree(server.pid))
    server.send_signal(signal.SIGUSR2)
    # Time for the new one to start, as the manual says, before the old one ends.
    time.sleep(4)
    assert set(processes.tree(server.pid)) - old, f"no new master; the log: {server.log}"
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: not server.runs(), "the old master ends", 60)
    time.sleep(2)


def start(bench: Bench) -> list[Line]:
    """Time from the command to the first answer, with embedded shards, on a warm disk."""
    found = []
    with bench.own_folder() as folder:
        environ = {"VISITS_EMBEDDED_PORTS": ",".join(map(str, free_ports(2)))}
        server = GunicornServer(folder, port=free_port(), **environ)
        for number in range(1 + (_STARTS if bench.effort.turns > 1 else 1)):
            bench.progress(f"start {number}")
            with wrk.pinned(bench.server_core):
                began = time.monotonic()
                server.spawn()
            try:
                found.append(first_answer(server.port, "/visits/first", server.runs) - began)
            finally:
                server.stop()
    value = statistics.median(found[1:])
    more = f" (shortest {min(found[1:]):.2f} s, longest {max(found[1:]):.2f} s)"
    return [at_most("from the command to the first answer, embedded shards, warm disk", value, 0.7, "s", more)]
