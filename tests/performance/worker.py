"""Visits per second on one core, against other ways to count: `python -m tests.performance.worker [seconds] [turns]`.

All systems run in turn in one run: each server, with its workers and its shards, on the first core; wrk on the second,
with one thread, 16 kept connections and 1,000 pages. webdis is measured twice, with its Valkey on its own core and on
that of wrk, and compared by the better figure. A figure is the median of the turns. wrk and webdis must be installed.

Prints a table and the ratios to reach, and exits with status 1 if one is not reached.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.performance.wrk import CONNECTIONS, pinned
from tests.support.ports import free_port, listening
from tests.support.processes import own_cpu_seconds
from tests.support.servers import GunicornServer, ValkeyServer, running_valkeys, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER_CORE, LOAD_CORE = 0, 1
WORKER = "visit_counter.server.worker.VisitWorker"

SCRIPT = """
local number = 0
request = function()
  number = (number + 1) % 1000
  return wrk.format("{method}", "{prefix}blog-post-" .. number)
end
done = function(summary, latency)
  local wrong = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(99), wrong))
end
"""


class Load(NamedTuple):
    """What one system is asked: the method and the path before the page."""

    name: str
    method: str
    prefix: str
    port: int
    pids: Callable[[], list[int]]


class Figure(NamedTuple):
    """What one turn measured; the CPU is that of all the system's processes on the server's core."""

    per_second: float
    p99_us: float
    cpu_us: float


def measure(load: Load, seconds: int, folder: Path, connections: int = CONNECTIONS) -> Figure:
    """Run wrk once."""
    script = folder / "load.lua"
    script.write_text(SCRIPT.format(method=load.method, prefix=load.prefix))
    before = own_cpu_seconds(load.pids())
    with pinned(LOAD_CORE):
        done = subprocess.run(
            [
                shutil.which("wrk") or "",
                "-t1",
                f"-c{connections}",
                f"-d{seconds}s",
                "-s",
                str(script),
                f"http://127.0.0.1:{load.port}",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    used = own_cpu_seconds(load.pids()) - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found, done.stdout
    requests, duration_us, p99_us, wrong = (int(text) for text in found.groups())
    assert not wrong, f"{load.name}: {wrong} requests failed\n{done.stdout}"
    return Figure(requests / (duration_us / 1e6), p99_us, used / requests * 1e6)


def two_shards(stack: ExitStack, folder: Path, name: str = "valkey") -> str:
    """Start two shards, which the stack ends; return VISITS_SHARDS."""
    shards = stack.enter_context(running_valkeys(*(folder / f"{name}-{number}" for number in range(2))))
    return ",".join(shard.url for shard in shards)


def service(stack: ExitStack, folder: Path, worker: str) -> GunicornServer:
    """Start the service as it is deployed: two shards, the default profile, one worker."""
    with pinned(SERVER_CORE):
        urls = two_shards(stack, folder, worker)
        server = GunicornServer(folder / worker, "-w", "1", "-k", worker, port=0, VISITS_SHARDS=urls).start()
    stack.callback(server.stop)
    return server


def hello(stack: ExitStack, folder: Path) -> GunicornServer:
    """Start gunicorn's stock worker with an application that does nothing."""
    with pinned(SERVER_CORE):
        options = ("-w", "1", "-k", "gthread", "-c", "/dev/null", "--threads", "4", "--no-control-socket")
        server = GunicornServer(folder / "hello", *options, app="tests.performance.hello:app").start()
    stack.callback(server.stop)
    return server


def webdis(
    stack: ExitStack, folder: Path, valkey_core: int, appendonly: str = "no"
) -> tuple[int, Callable[[], list[int]]]:
    """Start webdis and its Valkey; return the port and what uses the server's core."""
    with pinned(valkey_core):
        where = folder / f"webdis-{valkey_core}"
        valkey = ValkeyServer(where, appendonly=appendonly, appendfsync="everysec").start()
    stack.callback(valkey.kill)
    port = free_port()
    config = folder / f"webdis-{valkey_core}.json"
    config.write_text(
        json.dumps(
            {"redis_host": "127.0.0.1", "redis_port": valkey.port, "http_host": "127.0.0.1", "http_port": port}
            | {"threads": 1, "pool_size": 20, "daemonize": False, "websockets": False, "verbosity": 0}
            | {"logfile": str(folder / "webdis.log"), "acl": [{"enabled": ["*"]}], "database": 0}
        )
    )
    with pinned(SERVER_CORE):
        process = subprocess.Popen(
            [shutil.which("webdis") or "", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def end() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    stack.callback(end)
    wait_until(lambda: listening(port), "webdis listens")
    return port, lambda: [process.pid, *([valkey.pid] if valkey_core == SERVER_CORE else [])]


def systems(stack: ExitStack, folder: Path) -> Iterator[Load]:
    """Start everything, and give what is to be measured."""
    ours, blueprint, bare = service(stack, folder, WORKER), service(stack, folder, "gthread"), hello(stack, folder)
    for method in ("POST", "GET"):
        yield Load(f"VisitWorker {method}", method, "/visits/", ours.port, lambda: ours.worker_pids)
    for method in ("POST", "GET"):
        yield Load(f"gthread {method}", method, "/visits/", blueprint.port, lambda: blueprint.worker_pids)
    yield Load("gthread hello", "GET", "/", bare.port, lambda: bare.worker_pids)
    for where, core in (("same core", SERVER_CORE), ("core of wrk", LOAD_CORE)):
        port, pids = webdis(stack, folder, core)
        for command in ("INCR", "GET"):
            yield Load(f"webdis {command}, Valkey on {where}", "GET", f"/{command}/", port, pids)


def main(seconds: int = 10, turns: int = 3) -> int:
    """Measure, print, and tell whether every ratio is reached."""
    if not (shutil.which("wrk") and shutil.which("webdis")):
        print("wrk and webdis must be installed")
        return 2
    figures: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        loads = list(systems(stack, Path(name)))
        for load in loads:  # what is slow only at first is not what is measured
            measure(load, 1, Path(name))
        for turn in range(turns):
            for load in loads:
                print(f"\rturn {turn + 1} of {turns}: {load.name:<45}", end="", file=sys.stderr, flush=True)
                figures.setdefault(load.name, []).append(measure(load, seconds, Path(name)))
    print(file=sys.stderr)
    medians = {
        name: Figure(*(statistics.median(column) for column in zip(*mine, strict=True)))
        for name, mine in figures.items()
    }
    print(f"| {'system':<42} | {'per second':>10} | {'p99':>9} | {'CPU of a request':>16} |\n|---|---|---|---|")
    for name, figure in medians.items():
        print(f"| {name:<42} | {figure.per_second:>10,.0f} | {figure.p99_us:>6,.0f} us | {figure.cpu_us:>13.1f} us |")
    return report({name: figure.per_second for name, figure in medians.items()})


def report(speed: dict[str, float]) -> int:
    """Print the ratios to reach; return 0 if all are."""

    def best(start: str) -> float:
        return max(value for name, value in speed.items() if name.startswith(start))

    ratios = [
        ("POST against webdis INCR", speed["VisitWorker POST"] / best("webdis INCR"), 1.0),
        ("POST against gthread hello", speed["VisitWorker POST"] / speed["gthread hello"], 5.0),
        ("POST against our blueprint under gthread", speed["VisitWorker POST"] / speed["gthread POST"], 8.0),
        ("GET against webdis GET", speed["VisitWorker GET"] / best("webdis GET"), 1.0),
    ]
    print(f"\n| {'ratio':<42} | {'reached':>8} | {'at least':>8} |\n|---|---|---|")
    for name, reached, least in ratios:
        print(f"| {name:<42} | {reached:>7.2f}x | {least:>7.1f}x |")
    return 0 if all(reached >= least for _, reached, least in ratios) else 1


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
