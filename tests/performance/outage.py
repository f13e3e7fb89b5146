"""One shard is dead for long under a steady load, and comes back: figures of docs/reliability.md.

    python -m tests.performance.outage --seconds 3600 [--rate 240] [--pages 3000] [--workers 2]

Every 30 s a line with the visits accepted, the journal's bytes and files, and the workers' memory; then how long the
waiting visits took to drain, what requests cost in each phase, and what was lost or doubled.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.load import Load, percentile
from tests.support.own_shards import Service
from tests.support.processes import resident_mib
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal
from visit_counter.shards.contract import segment_of

POSTS = 5 / 6
EVERY_SECONDS = 30.0


class Watch:
    """Looks at the service from outside, and prints what it sees."""

    def __init__(self, service: Service, load: Load) -> None:
        self.service, self.load = service, load
        self.journal = Journal(service.gunicorn.dir / "data" / "journal")
        self.started = time.monotonic()
        print(" minute    visits journal KiB  files merged   waiting MiB of each worker   api_status", flush=True)

    def behind(self) -> int:
        """Return how many segments the partitions that wait longest are behind the others."""
        confirmed = [segment_of(token) for token in Checkpoint.load(self.journal.state_path).confirmed.values()]
        return max(confirmed, default=0) - min(confirmed, default=0)

    def line(self) -> None:
        """Print one line."""
        segments = self.journal.segments()
        merged = sum(segment.first != segment.last for segment in segments)
        health = self.service.gunicorn.health()
        memory = " ".join(f"{resident_mib(pid):6.1f}" for pid in self.service.gunicorn.worker_pids)
        print(
            f"{(time.monotonic() - self.started) / 60:7.1f} {self.load.oracle.visits:9} "
            f"{self.journal.size_bytes() / 1024:11.0f} {len(segments):6} {merged:6} {health['pending_visits']:9} "
            f"{memory:>23}   {health['api_status']}",
            flush=True,
        )

    def phase(self, name: str) -> None:
        """Print what the requests of a phase cost, and begin the next."""
        for method in ("GET", "POST"):
            found = [sample for sample in self.load.samples if sample.method == method]
            seconds = [sample.seconds for sample in found]
            others = dict(Counter(sample.status for sample in found if sample.status != 200))
            p50, p99 = (percentile(seconds, share) * 1e3 for share in (0.5, 0.99))
            print(
                f"{name:8} {method:4} {len(found):8} answers, others than 200: {others or 0}; "
                f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {max(seconds, default=0) * 1e3:.1f} ms",
                flush=True,
            )
        self.load.samples.clear()


class Drain:
    """When, after the shard came back, health said so and everything that waited was stored. Seconds."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._started = time.monotonic()
        self.healthy = self.drained = 0.0
        self.flushes: list[str] = []

    def look(self) -> None:
        """Look once."""
        now = time.monotonic() - self._started
        if not self.healthy and self._watch.service.gunicorn.health()["api_status"] == "healthy":
            self.healthy = now
        last = Checkpoint.load(self._watch.journal.state_path).last_flush
        if last is not None:
            text = f"{last.visits} visits of {last.pages} pages in {last.seconds} s {last.error}"
            if text not in self.flushes:
                self.flushes.append(text)
                if not last.error and not self.drained and len(self.flushes) > 1:
                    self.drained = now


def run(service: Service, load: Load, seconds: float, around_seconds: float) -> bool:
    """Be healthy, lose a shard for `seconds`, get it back; print the figures; tell whether all was as promised."""
    watch = Watch(service, load)
    load.run(around_seconds, watch.line, EVERY_SECONDS)
    watch.phase("healthy")
    print("kill -9 of a shard", flush=True)
    service.shards[0].kill()
    load.run(seconds, watch.line, EVERY_SECONDS)
    watch.line()
    watch.phase("outage")
    waiting = watch.service.gunicorn.health()["pending_visits"]
    started = time.monotonic()
    service.shards[0].start()
    print(f"the shard is back after {time.monotonic() - started:.2f} s; {waiting} visits wait", flush=True)
    drain = Drain(watch)
    load.run(around_seconds, drain.look, 0.25)
    watch.phase("after")
    watch.line()
    print(f"health says healthy after {drain.healthy:.2f} s, all that waited is stored after {drain.drained:.2f} s")
    print(*drain.flushes, sep="\n")
    lost, doubled = service.lost_and_doubled(load)
    print(f"visits {load.oracle.visits}   lost {lost}   doubled {doubled}")
    print(*load.oracle.mistakes[:20] or ["every answer was right"], sep="\n", flush=True)
    return not (lost or doubled or load.oracle.mistakes) and drain.drained > 0


def main() -> int:
    """Run it; return the exit status."""
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600, help="of the outage")
    parser.add_argument("--around-seconds", type=float, default=90, help="before it and after it")
    parser.add_argument("--rate", type=float, default=240, help="requests a second; five of six are visits")
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--flush-seconds", type=float, default=30)
    parser.add_argument("--worker-class", default="", help="another than the service's own")
    arguments = parser.parse_args()
    options = ("-k", arguments.worker_class) if arguments.worker_class else ()
    with tempfile.TemporaryDirectory() as folder:
        flush_seconds = str(arguments.flush_seconds)
        service = Service(
            Path(folder), arguments.pages, *options, workers=arguments.workers, VISITS_FLUSH_SECONDS=flush_seconds
        )
        try:
            load = Load(service.gunicorn.port, service.pages, rate=arguments.rate, posts=POSTS)
            load.make_known(lambda: service.every_worker_serves(3))
            good = run(service, load, arguments.seconds, arguments.around_seconds)
            load.close()
        finally:
            service.close()
    return not good


if __name__ == "__main__":
    sys.exit(main())
