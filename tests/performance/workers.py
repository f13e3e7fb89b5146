"""What a second worker costs: `python -m tests.performance.workers [seconds] [turns]`.

CPU of the servers for a visit on two cores: one worker; two workers of one service, which follow one journal; and two
services of one worker each, which share nothing, so that what sharing costs can be told from what smaller turns cost.
wrk (1,000 pages, kept connections) runs on one of the two cores. All in turn in one run, the median of the turns. wrk
must be installed. Prints a table, and exits with status 1 if two workers with the same load each cost too much.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.performance.worker import WORKER, Load, measure, two_shards
from tests.support.processes import own_cpu_seconds
from tests.support.servers import GunicornServer

AT_MOST = 1.15
# wrk opens its connections all at once, and a worker that is awake may take nearly all: then only one is at work.
_LEAST_SHARE = 0.3
_TRIES = 30


class Case(NamedTuple):
    """One way to serve, and the connections to each of its services."""

    name: str
    services: list[GunicornServer]
    connections: int


def turn(case: Case, seconds: int, folder: Path) -> float:
    """Return the CPU of a visit in microseconds, from a turn in which every worker had its share."""
    pids = [pid for service in case.services for pid in service.worker_pids]
    for _ in range(_TRIES):
        before = [own_cpu_seconds([pid]) for pid in pids]
        loads = [
            Load(case.name, "POST", "/visits/", one.port, partial(lambda one: one.worker_pids, one))
            for one in case.services
        ]
        with ThreadPoolExecutor(len(loads)) as pool:
            figures = list(pool.map(lambda load: measure(load, seconds, folder, case.connections), loads))
        used = [own_cpu_seconds([pid]) - was for pid, was in zip(pids, before, strict=True)]
        if min(used) >= _LEAST_SHARE * sum(used) or len(pids) == 1:
            return sum(used) * 1e6 / sum(figure.per_second * seconds for figure in figures)
    sys.exit(f"{case.name}: one worker has nearly all connections, {_TRIES} times in a row")


def main(seconds: int = 4, turns: int = 5) -> int:
    """Measure and print; tell whether two workers cost little more than one."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        urls = two_shards(stack, folder)

        def start(name: str, workers: str) -> GunicornServer:
            service = GunicornServer(folder / name, "-k", WORKER, "-w", workers, port=0, VISITS_SHARDS=urls).start()
            stack.callback(service.stop)
            return service

        one, two, apart = start("one", "1"), start("two", "2"), [start("left", "1"), start("right", "1")]
        cases = [
            Case("one worker, 16 connections", [one], 16),
            Case("two workers, 16 connections for each", [two], 32),
            Case("two services, 16 connections for each", apart, 16),
            Case("two workers, 8 connections for each", [two], 16),
            Case("two services, 8 connections for each", apart, 8),
        ]
        for case in cases:  # what is slow only at first is not what is measured
            turn(case, 1, folder)
        found: dict[str, list[float]] = {case.name: [] for case in cases}
        for number in range(turns):
            for case in cases:
                print(f"\rturn {number + 1} of {turns}: {case.name:<40}", end="", file=sys.stderr, flush=True)
                found[case.name].append(turn(case, seconds, folder))
    print(file=sys.stderr)
    medians = {name: statistics.median(mine) for name, mine in found.items()}
    first, second, *_ = medians.values()
    print(f"| {'POST on two cores':<38} | {'CPU of a visit':>14} | {'against one':>11} |\n|---|---|---|")
    for name, used in medians.items():
        print(f"| {name:<38} | {used:>11.1f} us | {used / first:>10.2f}x |")
    print(f"\ntwo workers against one, 16 connections for each: {second / first:.2f}x, at most {AT_MOST}x")
    return 0 if second / first <= AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
