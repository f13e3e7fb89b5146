"""What slow clients cost the others: `python -m tests.performance.slow_clients [--number 1000] [--seconds 4]`.

The service with two workers answers 300 requests a second for known pages, half of them visits, alone and with so many
clients of a kind beside them, in turn, so that both are of the same minute of the machine. A latency counts from the
moment a request was due. The clients are threads of this process, and need a part of the second core themselves.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.performance.worker import two_shards
from tests.support.load import Load, percentile
from tests.support.servers import GunicornServer
from tests.support.slow_clients import KINDS, SlowClients

PAGES = [f"page/{number}" for number in range(200)]


def main() -> None:
    """Measure and print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        server = GunicornServer(Path(name) / "service", VISITS_SHARDS=two_shards(stack, Path(name))).start()
        stack.callback(server.stop)
        load = Load(server.port, PAGES, rate=300)
        stack.callback(load.close)
        load.make_known(lambda: len(load.samples) > 20)
        print(f"| {options.number} clients with | p50 alone / with | p99 alone / with | ratio | not 200 |")
        print("|---|--:|--:|--:|--:|")
        for kind in KINDS:
            found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            wrong = 0
            for turn in range(2 * options.turns):
                is_slow = turn % 2 == 1
                with SlowClients(server.port, kind, options.number if is_slow else 0):
                    load.run(1.0)  # what comes in while they connect is not measured
                    load.samples.clear()
                    load.run(options.seconds)
                seconds = [sample.seconds for sample in load.samples]
                wrong += sum(sample.status != 200 for sample in load.samples)
                found[is_slow].append((percentile(seconds, 0.5) * 1e3, percentile(seconds, 0.99) * 1e3))
            (p50, p99), (slow50, slow99) = (
                tuple(statistics.median(column) for column in zip(*found[side], strict=True)) for side in (False, True)
            )
            row = f"{p50:.2f} / {slow50:.2f} ms | {p99:.1f} / {slow99:.1f} ms | {slow99 / p99:.2f}x"
            print(f"| {kind} | {row} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
