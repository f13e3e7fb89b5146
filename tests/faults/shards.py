"""The rows of the campaign in which a shard hangs, dies or is restarted while the service answers on.

Two workers that flush five times a second, two shards, 200 requests a second for 300 pages that both workers know. One
of the shards, drawn anew each time, goes down at a random moment and returns after a random time; the next time
comes once a flush has reached both. Visits and reads must be answered 200 all along.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

from tests.support.load import Load
from tests.support.oracle import BrokenError
from tests.support.own_shards import Service
from tests.support.servers import wait_until
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.servers import ValkeyServer

_PAGES = 300
# How long a shard is down, from about nothing to longer than every time-out but that of a flush.
_AWAY_SECONDS = (0.01, 1.5)


def hang(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard hangs (SIGSTOP) and goes on, known pages answered 200."""

    def act(shard: ValkeyServer, seconds: float) -> None:
        shard.freeze()
        time.sleep(seconds)
        shard.thaw()

    return _under_load(directory, trials, seed, progress, act)


def die(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard is killed (kill -9) and started, known pages answered 200."""

    def act(shard: ValkeyServer, seconds: float) -> None:
        shard.stop(signal.SIGKILL)
        time.sleep(seconds)
        shard.start()

    return _under_load(directory, trials, seed, progress, act)


def restart(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard is ended by its operator and started, known pages answered 200."""

    def act(shard: ValkeyServer, seconds: float) -> None:
        shard.stop(signal.SIGTERM)
        time.sleep(seconds)
        shard.start()

    return _under_load(directory, trials, seed, progress, act)


def _under_load(
    directory: Path, trials: int, seed: int, progress: Callable[[int], None], act: Callable[[ValkeyServer, float], None]
) -> str:
    environ: dict[str, Any] = {"VISITS_FLUSH_SECONDS": "0.2", "VISITS_RETAIN_SEGMENTS": "5"}
    with closing(Service(directory, _PAGES, workers=2, **environ)) as service:
        load = Load(service.gunicorn.port, service.pages, rate=200, seed=seed)
        random = Random(seed)
        load.make_known(lambda: service.every_worker_serves(2))
        over = threading.Event()
        # What watches the load ends it; it is asked ten times a second.
        loading = threading.Thread(target=load.run, args=(float("inf"), over.is_set, 0.1))
        loading.start()
        try:
            for trial in range(trials):
                time.sleep(random.uniform(0, 0.4))
                act(random.choice(service.shards), random.uniform(*_AWAY_SECONDS))
                _wait_for_a_whole_flush(service)
                progress(trial + 1)
        finally:
            over.set()
            loading.join()
        lost, doubled = service.lost_and_doubled(load)
        load.close()
    others = Counter(sample.status for sample in load.samples if sample.status != 200)
    detail = f"{load.oracle.visits} visits, lost {lost}, doubled {doubled}"
    if lost or doubled or load.oracle.mistakes or others:
        raise BrokenError(f"{detail}; answers but 200: {dict(others)}; wrong: {load.oracle.mistakes[:5]}")
    return detail


def _wait_for_a_whole_flush(service: Service) -> None:
    """Wait until a flush that began after this moment has reached both shards."""
    path = Journal(service.gunicorn.dir / "data" / "journal").state_path
    now = time.time()

    def flushed() -> bool:
        last = Checkpoint.load(path).last_flush
        return last is not None and last.at - last.seconds > now and not last.error

    wait_until(flushed, "a flush reaches both shards", seconds=60)
