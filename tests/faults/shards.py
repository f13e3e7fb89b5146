"""A shard hangs, dies or is restarted again and again under load; what was acknowledged is counted, once.

    python -m tests.faults.shards [--times 200] [--row "shard kill -9"]

Two workers that flush five times a second, two shards, 200 visits and reads a second of 300 pages. One of the shards,
drawn anew each time, goes away at a random moment and returns after a random time. Prints a row for each of ROWS.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.load import Load
from tests.servers import ValkeyServer, wait_until
from tests.two_shards import Service
from visit_counter.journal import Journal
from visit_counter.state import State

PAGES = 300
# How long a shard is away, from about nothing to longer than every time-out but that of a flush.
AWAY_SECONDS = (0.01, 1.5)

Act = Callable[[ValkeyServer, float], None]


def hang(shard: ValkeyServer, seconds: float) -> None:
    """Stop the shard's process, and let it go on."""
    shard.freeze()
    time.sleep(seconds)
    shard.thaw()


def die(shard: ValkeyServer, seconds: float) -> None:
    """End the shard with kill -9, and start it on its data."""
    shard.stop(signal.SIGKILL)
    time.sleep(seconds)
    shard.start()


def restart(shard: ValkeyServer, seconds: float) -> None:
    """End the shard as its operator would, and start it on its data."""
    shard.stop(signal.SIGTERM)
    time.sleep(seconds)
    shard.start()


ROWS: dict[str, Act] = {"shard SIGSTOP": hang, "shard kill -9": die, "shard restart": restart}


class Figures(NamedTuple):
    """What came of one row. `refused`: requests that were not answered 200; `wrong`: answers that could not be."""

    times: int
    visits: int
    lost: int
    doubled: int
    refused: int
    wrong: list[str]


def campaign(act: Act, times: int, seed: int = 0) -> Figures:
    """Let one of the shards go away and return so many times under load."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        options = {"VISITS_FLUSH_SECONDS": "0.2", "VISITS_RETAIN_SEGMENTS": "5"}
        with closing(Service(Path(folder), PAGES, "-w", "2", **options)) as service:
            load = Load(service.gunicorn.port, service.pages, rate=200, seed=seed)
            load.make_known(lambda: service.every_worker_serves(2))
            over = threading.Event()
            # The watching function ends the load; it is asked ten times a second.
            loading = threading.Thread(target=load.run, args=(float("inf"), over.is_set, 0.1))
            loading.start()
            try:
                for _ in range(times):
                    time.sleep(random.uniform(0, 0.4))
                    act(random.choice(service.shards), random.uniform(*AWAY_SECONDS))
                    _wait_for_a_whole_flush(service)
            finally:
                over.set()
                loading.join()
            lost, doubled = service.lost_and_doubled(load)
            load.close()
    refused = sum(sample.status != 200 for sample in load.samples)
    return Figures(times, sum(load.tally.acknowledged.values()), lost, doubled, refused, load.tally.wrong)


def _wait_for_a_whole_flush(service: Service) -> None:
    """Wait until a flush that began after this moment has reached both shards."""
    path = Journal(service.gunicorn.dir / "data" / "journal").state_path
    now = time.time()

    def flushed() -> bool:
        last = State.load(path).last_flush
        return last is not None and last.at - last.seconds > now and not last.error

    wait_until(flushed, "a flush reaches both shards", seconds=60)


def main() -> int:
    """Run the rows; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", choices=ROWS, action="append", help="one of the rows; all if none is named")
    arguments = parser.parse_args()
    good = True
    for name in arguments.row or ROWS:
        figures = campaign(ROWS[name], arguments.times, arguments.seed)
        good = good and not (figures.lost or figures.doubled or figures.wrong)
        print(
            f"{name}: {figures.times} times, {figures.visits} visits, lost {figures.lost}, "
            f"doubled {figures.doubled}, wrong answers {len(figures.wrong)}, not 200: {figures.refused}",
            *figures.wrong[:5],
            sep="\n    ",
            flush=True,
        )
    return not good


if __name__ == "__main__":
    sys.exit(main())
