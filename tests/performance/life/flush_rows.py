"""Rows of the flush, and of what a start reads again: CPU and time for a visit or a page, seen from outside."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from tests.performance import wrk
from tests.performance.life.bench import Line, at_least, at_most, end_service, visit_each
from tests.performance.life.probe import first_answer
from tests.performance.wrk import Requests
from tests.support import processes
from tests.support.servers import wait_until

if TYPE_CHECKING:
    from tests.performance.life.bench import Bench
    from tests.support.servers import GunicornServer

_LOOK_SECONDS = 0.2
_MOST_SECONDS = 300.0


def popular(bench: Bench) -> list[Line]:
    """CPU of the flush for a visit of a popular page: 1,000 pages, some two million visits."""
    seconds = bench.effort.popular
    with bench.service(VISITS_FLUSH_SECONDS=str(seconds * 1.4 + 3)) as (server, shards), bench.own_folder() as folder:
        result = wrk.run(server.url, Requests(), seconds, folder, core=bench.load_core)
        used, theirs = _flush(server, shards, result.requests, bench.effort.settle)
    return [
        at_most(
            "CPU of the flush for a visit of a popular page",
            (used + theirs) / result.requests * 1e6,
            0.1,
            "us",
            f" (service {used:.2f} s, shards {theirs:.2f} s for {result.requests:,} visits)",
        )
    ]


def distinct(bench: Bench) -> list[Line]:
    """CPU of a flush of distinct pages, for each page."""
    pages = bench.effort.flushed_pages
    with bench.service(VISITS_FLUSH_SECONDS=str(5 + pages / 3000)) as (server, shards):
        visit_each(server.port, range(pages))
        used, theirs = _flush(server, shards, pages, bench.effort.settle)
    return [
        at_most(
            f"CPU of a flush of {pages:,} distinct pages, for each",
            (used + theirs) / pages * 1e6,
            2.5,
            "us",
            f" (service {used / pages * 1e6:.1f} us, shards {theirs / pages * 1e6:.1f} us)",
        )
    ]


def _pending(server: GunicornServer) -> int:
    return int(server.health(60)["pending_visits"])


def _flush(server: GunicornServer, shards: list[int], visits: int, settle: float) -> tuple[float, float]:
    """Wait for the flush; return the CPU seconds of the service and of the shards that it took beyond being idle.

    `settle` is the time for what the processes do behind a flush, such as dropping its tables: it belongs to it.
    """
    pending = _pending(server)
    assert pending >= visits, f"a flush began before all was visited: {pending} of {visits} visits wait"

    def used() -> tuple[float, float]:
        return processes.cpu_seconds(processes.tree(server.pid)), processes.cpu_seconds(shards)

    def spend(seconds: float, *, until_flushed: bool) -> tuple[float, float, float]:
        """Look at the pending visits all the time; return the seconds and the CPU of both."""
        started, (ours, theirs) = time.monotonic(), used()
        flushed = started + (_MOST_SECONDS if until_flushed else 0)
        while (now := time.monotonic()) < flushed + seconds:
            if flushed > now and not _pending(server):
                flushed = now
            elif flushed <= now:
                _pending(server)
            time.sleep(_LOOK_SECONDS)
        ended = used()
        return time.monotonic() - started, ended[0] - ours, ended[1] - theirs

    took, ours, theirs = spend(settle, until_flushed=True)
    assert not _pending(server), "no flush came"
    idle, idle_ours, idle_theirs = spend(settle, until_flushed=False)
    return max(0.0, ours - idle_ours * took / idle), max(0.0, theirs - idle_theirs * took / idle)


def replay(bench: Bench) -> list[Line]:
    """Start with a journal of distinct pages, in visits a second beyond a start with none."""
    pages = bench.effort.replayed_pages

    def start(server: GunicornServer) -> float:
        end_service(server)
        with wrk.pinned(bench.server_core):
            began = time.monotonic()
            server.spawn()
        return first_answer(server.port, "/health", server.runs) - began

    with bench.service(VISITS_FLUSH_SECONDS="3600", VISITS_PENDING_MAX_PAGES="10000000") as (server, _):
        empty = statistics.median(start(server) for _ in range(3))
        visit_each(server.port, range(pages))
        full = statistics.median(start(server) for _ in range(3))
        wait_until(lambda: _pending(server) >= pages, "the service knows the visits again")
    rate = pages / max(full - empty, 0.001)
    more = f" ({full:.2f} s with {pages:,} pages, {empty:.2f} s with none)"
    return [at_least("start with a journal of distinct pages, visits a second", rate, 1_000_000, "", more)]
