"""One shard hangs, dies and returns under load: what POST and GET cost meanwhile, by shard.

    python -m tests.performance.failover [--rate 1000] [--pages 1000] [--seconds 10] [--rounds 1]

Prints a row for each phase, shard and method: answers, those that were not 200, p50, p99 and the longest, in ms.
Each phase starts with the event it is named for, so that whoever pays for finding out is in it. Ends with status 1
where p99 is more than 5 times the healthy one or above 250 ms, a page the workers know was not answered 200, an
answer was wrong, or a visit was lost or doubled.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.load import Load, Sample, percentile
from tests.support.own_shards import Service
from tests.support.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

WORST_RATIO = 5.0
WORST_SECONDS = 0.25


def rows(samples: list[Sample], owner: dict[str, str]) -> dict[tuple[str, str], list[Sample]]:
    """Return the samples by shard and method."""
    result: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        result.setdefault((owner[sample.page], sample.method), []).append(sample)
    return dict(sorted(result.items()))


def show(phase: str, key: tuple[str, str], found: list[Sample]) -> None:
    """Print one row."""
    seconds = [sample.seconds for sample in found]
    others = sum(sample.status != 200 for sample in found)
    p50, p99 = (percentile(seconds, share) * 1e3 for share in (0.5, 0.99))
    slow = sum(one > WORST_SECONDS / 10 for one in seconds)
    print(
        f"{phase:12} {key[0]:10} {key[1]:4} {len(found):7} {others:6} "
        f"{p50:8.2f} {p99:8.2f} {max(seconds) * 1e3:8.1f} {slow:6}",
        flush=True,
    )


def measure(service: Service, load: Load, seconds: float, rounds: int) -> list[str]:
    """Go through the phases, print them, and return what was not as promised."""
    dead = service.shards[0]
    phases: dict[str, Callable[[], object]] = {
        "healthy": lambda: None,
        "SIGSTOP": dead.freeze,
        "SIGCONT": dead.thaw,
        "kill -9": dead.kill,
        "back": dead.start,
    }
    samples: dict[str, list[Sample]] = {phase: [] for phase in phases}
    for _ in range(rounds):
        for phase, event in phases.items():
            load.samples.clear()
            event()
            load.run(seconds)
            samples[phase] += load.samples
    wrong: list[str] = []
    healthy: dict[tuple[str, str], float] = {}
    print("phase        shard           answers no 200   p50 ms   p99 ms   max ms >25 ms")
    for phase, taken in samples.items():
        for key, found in rows(taken, service.owner).items():
            show(phase, key, found)
            p99 = percentile([sample.seconds for sample in found], 0.99)
            limit = min(WORST_RATIO * healthy.setdefault(key, p99), WORST_SECONDS)
            if p99 > limit:
                wrong.append(f"{phase} {key}: p99 is {p99 * 1e3:.2f} ms, allowed {limit * 1e3:.2f}")
            if any(sample.status != 200 for sample in found):
                wrong.append(f"{phase} {key}: {sorted({sample.status for sample in found})} answered")
    return wrong + load.oracle.mistakes


def main() -> int:
    """Run the benchmark; return the exit status."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000, help="requests a second, half of them visits")
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="of each phase")
    parser.add_argument("--rounds", type=int, default=1, help="of all phases; what else the machine does evens out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker-class", default="", help="another than the service's own")
    arguments = parser.parse_args()
    options = ("-k", arguments.worker_class) if arguments.worker_class else ()
    with tempfile.TemporaryDirectory() as folder:
        flush_seconds = str(arguments.seconds / 2)
        service = Service(
            Path(folder), arguments.pages, *options, workers=arguments.workers, VISITS_FLUSH_SECONDS=flush_seconds
        )
        try:
            load = Load(service.gunicorn.port, service.pages, rate=arguments.rate)
            load.make_known(lambda: service.every_worker_serves(3))
            wrong = measure(service, load, arguments.seconds, arguments.rounds)
            wait_until(service.shards[0].runs, "the shard is back")
            lost, doubled = service.lost_and_doubled(load)
            load.close()
        finally:
            service.close()
    print(f"visits {load.oracle.visits}   lost {lost}   doubled {doubled}")
    print(*wrong or ["as promised"], sep="\n")
    return bool(wrong or lost or doubled)


if __name__ == "__main__":
    sys.exit(main())
