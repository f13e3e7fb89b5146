"""All profiles in one run: visits and reads per second and their latency, by a real gunicorn over real shards.

`pytest tests/performance/` takes its time and writes benchmark-profiles.json; in the whole suite a short version runs.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.conftest import is_whole_suite
from tests.support import processes
from tests.support.servers import REPOSITORY, GunicornServer, running_valkeys
from visit_counter.config.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECTIONS, PAGES = 16, 200
METHODS = ("POST", "GET")


class Effort(NamedTuple):
    """How much is measured."""

    turns: int
    seconds: float


FULL, SHORT = Effort(turns=3, seconds=2.0), Effort(turns=3, seconds=0.2)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, GunicornServer]]:
    """A service of one worker for each profile, over two shards of its own, all running."""
    # What is measured must not be slowed by being covered.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    with ExitStack() as stack:
        services = {}
        for profile in PROFILES:
            folders = (tmp_path / profile / f"shard_{number}" for number in range(2))
            shards = stack.enter_context(running_valkeys(*folders))
            urls = ",".join(shard.url for shard in shards)
            service = GunicornServer(tmp_path / profile, "-w", "1", VISITS_PROFILE=profile, VISITS_SHARDS=urls)
            stack.callback(service.stop)
            services[profile] = service.start()
        yield services


def load(service: GunicornServer, method: str, seconds: float) -> dict[str, Any]:
    """Return what the load generator measured, and the service's requests for each second of its processor time."""
    command = [sys.executable, "-m", "tests.performance.load", str(service.port), method]
    command += ["--seconds", str(seconds), "--pages", str(PAGES), "--connections", str(CONNECTIONS)]
    before = processes.cpu_seconds(processes.tree(service.pid))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    # The clock of processes has ticks, and a short run may take none.
    used = max(processes.cpu_seconds(processes.tree(service.pid)) - before, processes.TICK_SECONDS)
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"requests_per_cpu_second": sum(result["statuses"].values()) / used}


def total(service: GunicornServer) -> int:
    """Return the sum of all counts."""
    count = 0
    for number in range(PAGES):
        with urllib.request.urlopen(f"{service.url}/visits/page/{number}") as reply:
            count += json.load(reply)["visits"]
    return count


def show(text: str, *, last: bool = False) -> None:
    """Show the progress: one line that changes on a terminal, nothing where the output is kept in a file."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)


def measure(services: dict[str, GunicornServer], effort: Effort) -> dict[str, dict[str, Any]]:
    """Return the medians by profile and method; the profiles take turns, so that all meet the same machine."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    steps = [(turn, name, method) for turn in range(effort.turns) for name in services for method in METHODS]
    for done, (turn, profile, method) in enumerate(steps):
        bar = f"{'#' * (20 * done // len(steps)):.<20}"
        show(f"[{bar}] turn {turn + 1} of {effort.turns}: {method} {profile}")
        runs.setdefault((profile, method), []).append(load(services[profile], method, effort.seconds))
    show(f"[{'#' * 20}] measured", last=True)
    return {
        profile: {
            method: {
                name: statistics.median(run[name] for run in runs[profile, method])
                for name in ("requests_per_second", "requests_per_cpu_second", "p50_ms", "p99_ms")
            }
            | {"answers": sum(sum(run["statuses"].values()) for run in runs[profile, method])}
            | {
                "refused": sum(
                    sum(run["statuses"].values()) - run["statuses"].get("200", 0) for run in runs[profile, method]
                )
            }
            for method in METHODS
        }
        for profile in services
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results for a person."""
    titles = "".join(f"{f'{method}/s':>10}{'/CPU s':>9}{'p50 ms':>9}{'p99 ms':>9}" for method in METHODS)
    lines = [f"{'profile':<9}{titles}"]
    for profile, result in results.items():
        cells = (result[method] for method in METHODS)
        figures = "".join(
            f"{cell['requests_per_second']:>10,.0f}{cell['requests_per_cpu_second']:>9,.0f}"
            f"{cell['p50_ms']:>9.2f}{cell['p99_ms']:>9.2f}"
            for cell in cells
        )
        lines.append(f"{profile:<9}{figures}")
    return "\n".join(lines)


def test_every_stage_is_worth_its_name(
    services: dict[str, GunicornServer],
    pytestconfig: pytest.Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The journal makes visits no slower, the cache makes reads no slower, and under load every count is exact.

    By the processor time of the service: what else the machine has to do changes it little.
    """
    short = is_whole_suite(pytestconfig)
    effort = SHORT if short else FULL
    path = (tmp_path if short else REPOSITORY) / "benchmark-profiles.json"
    with capsys.disabled():
        print()
        results = measure(services, effort)
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        setup = {"connections": CONNECTIONS, "pages": PAGES, "workers": 1, "machine": machine, **effort._asdict()}
        path.write_text(json.dumps({"setup": setup, "profiles": results}, indent=2) + "\n", encoding="utf-8")
        print(table(results))
        print(f"{CONNECTIONS} connections, {PAGES} pages, 1 worker, {machine}; the same as JSON: {path}")
    for profile, service in services.items():
        assert results[profile]["POST"]["refused"] == results[profile]["GET"]["refused"] == 0
        assert total(service) == results[profile]["POST"]["answers"]

    def rate(profile: str, method: str) -> float:
        return float(results[profile][method]["requests_per_cpu_second"])

    for profile in ("batched", "sharded"):
        assert rate(profile, "POST") >= rate("redis", "POST")
    for profile in ("cached", "batched", "sharded"):
        assert rate(profile, "GET") >= rate("redis", "GET")
