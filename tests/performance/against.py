"""This checkout against another one: `python -m tests.performance.against DIRECTORY [seconds] [turns]`.

What a change costs, in one run: the service of this checkout and that of another (a `git worktree` of the commit
before, say) take turns, each with one worker and two shards of its own on the first core, wrk on the second. Requests
have the header fields of a load generator or those that visitors and proxies send, with an address and a request id
that are new each time, or ask for a connection of their own; pages are 1,000 in turn, or 100,000 visited as pages are
(Zipf). wrk must be installed.

Prints, for each kind of request, the CPU of a worker for one request and requests a second on both sides.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.performance import wrk
from tests.performance.worker import LOAD_CORE, SERVER_CORE, two_shards
from tests.performance.wrk import pinned
from tests.support.processes import own_cpu_seconds
from tests.support.servers import REPOSITORY, GunicornServer

KINDS = (
    ("POST", "generator", "turn"),
    ("GET", "generator", "turn"),
    ("POST", "visitor", "turn"),
    ("POST", "closing", "turn"),
    ("POST", "generator", "zipf"),
    ("POST", "visitor", "zipf"),
)


class Figure(NamedTuple):
    """One turn: CPU of the worker for a request, requests a second, the 99th percentile; times in microseconds."""

    cpu_us: float
    per_second: float
    p99_us: float


def measure(server: GunicornServer, kind: tuple[str, str, str], seconds: int, folder: Path) -> Figure:
    """Run wrk once against a service."""
    method, fields, pages = kind
    before = own_cpu_seconds(server.worker_pids)
    result = wrk.run(server.url, wrk.Requests(method, fields, pages), seconds, folder, core=LOAD_CORE)
    used = own_cpu_seconds(server.worker_pids) - before
    return Figure(used / result.requests * 1e6, result.per_second, result.p99_us)


def main(other: str, seconds: int = 5, turns: int = 5) -> None:
    """Measure both checkouts in turn, and print the medians."""
    found: dict[tuple[str, tuple[str, str, str]], list[Figure]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack, pinned(SERVER_CORE):
        folder, servers = Path(name), {}
        for side, root in (("before", Path(other).resolve()), ("now", REPOSITORY)):
            urls = two_shards(stack, folder, side)
            server = GunicornServer(folder / f"service-{side}", "-w", "1", VISITS_SHARDS=urls)
            server.root = root
            servers[side] = server.start()
            stack.callback(server.stop)
        for turn in range(-1, turns):  # the first turn is not counted: what is slow only at first is not the question
            for kind in KINDS:
                for side, server in servers.items():
                    print(f"\rturn {turn + 1} of {turns}: {side:6} {' '.join(kind):<24}", end="", file=sys.stderr)
                    figure = measure(server, kind, seconds if turn >= 0 else 1, folder)
                    if turn >= 0:
                        found.setdefault((side, kind), []).append(figure)
    print(file=sys.stderr)
    print(
        "| request | fields | pages | CPU before | CPU now | now/before | requests/s before | now | p99 before | now |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        before, now = (
            Figure(*(statistics.median(column) for column in zip(*found[side, kind], strict=True)))
            for side in ("before", "now")
        )
        print(
            f"| {' | '.join(kind)} | {before.cpu_us:.1f} us | {now.cpu_us:.1f} us | {now.cpu_us / before.cpu_us:.2f}x "
            f"| {before.per_second:,.0f} | {now.per_second:,.0f} | {before.p99_us / 1e3:.1f} ms "
            f"| {now.p99_us / 1e3:.1f} ms |"
        )


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
