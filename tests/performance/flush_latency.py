"""What visitors feel of a flush: p99 of POST while 100,000 distinct pages are flushed, against p99 without.

    python -m tests.performance.flush_latency [turns] [pages]

One worker, two Valkey servers with `appendfsync always`, 16 connections that ask as fast as they are answered, and the
flush process at its low priority: four busy processes, so that the cores of the machine are part of the figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.servers import GunicornServer, running_valkeys

HOT_PAGES = 1000
SECONDS = 2.0


def load(port: int, *, pages: int, requests: int = 10_000_000, seconds: float = SECONDS) -> dict[str, Any]:
    """Run the load generator in a process of its own; return what it measured."""
    command = [sys.executable, "-m", "tests.performance.load", str(port), "POST", "--pages", str(pages)]
    command += ["--requests", str(requests), "--seconds", str(seconds)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert set(result["statuses"]) == {"200"}, result
    return result


def turn(server: GunicornServer, environ: dict[str, str], pages: int) -> tuple[float, float, float]:
    """Return p99 without a flush and with one, in ms, and the seconds of the flush."""
    load(server.port, pages=HOT_PAGES)
    load(server.port, pages=pages, requests=pages, seconds=120)
    without = load(server.port, pages=HOT_PAGES)["p99_ms"]
    flush = subprocess.Popen([sys.executable, "-m", "visit_counter.flush.process"], env={**os.environ, **environ})
    during = load(server.port, pages=HOT_PAGES)["p99_ms"]
    assert flush.wait(60) == 0
    journal = Path(environ["VISITS_DATA_DIR"]) / "journal" / "state.json"
    last = json.loads(journal.read_text(encoding="utf-8"))["last_flush"]
    assert last["pages"] >= pages, last
    return without, during, last["seconds"]


def main(turns: int = 3, pages: int = 100_000) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkeys = stack.enter_context(running_valkeys(folder / "one", folder / "two"))
        shards = ",".join(f"redis_{number}={valkey.url}" for number, valkey in enumerate(valkeys))
        environ = {"VISITS_SHARDS": shards, "VISITS_FLUSH_SECONDS": "3600", "VISITS_CACHE_PAGES": "200000"}
        server = GunicornServer(folder / "service", "-w", "1", **environ)  # type: ignore[arg-type]  # all are VISITS_*
        stack.callback(server.stop)
        server.start()
        environ["VISITS_DATA_DIR"] = str(folder / "service" / "data")
        found = []
        for number in range(turns):
            found.append(turn(server, environ, pages))
            without, during, seconds = found[-1]
            print(
                f"turn {number + 1} of {turns}: p99 {without:.2f} ms without, {during:.2f} ms with a flush "
                f"of {pages:,} pages in {seconds:.2f} s"
            )
        print(f"median ratio {median(during / without for without, during, _ in found):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
