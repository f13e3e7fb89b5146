"""This checkout against another one: `python -m tests.performance.against DIRECTORY [seconds] [turns]`.

What a change costs, in one run: the service of this checkout and that of another (a `git worktree` of the commit
before, say) take turns, each with one worker and two shards of its own on the first core, wrk on the second. Requests
have the header fields of a load generator or those that visitors and proxies send, with an address and a request id
that are new each time; pages are 1,000 in turn, or 100,000 visited as pages are (Zipf). wrk must be installed.

Prints, for each kind of request, the CPU of a worker for one request and requests a second on both sides.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.performance.worker import CONNECTIONS, LOAD_CORE, SERVER_CORE, cpu_seconds, pinned, two_shards
from tests.servers import REPOSITORY, GunicornServer

# Pages: `turn` gives them one after another; `zipf` draws number n with a likelihood of 1/n.
_PAGES = {
    "turn": 'local n = 0; local function page() n = (n + 1) % 1000; return "blog-post-" .. n end',
    "zipf": """
local sums, total = {}, 0
for rank = 1, 100000 do total = total + 1 / rank; sums[rank] = total end
math.randomseed(1)
local function page()
  local wanted, low, high = math.random() * total, 1, 100000
  while low < high do
    local middle = math.floor((low + high) / 2)
    if sums[middle] < wanted then low = middle + 1 else high = middle end
  end
  return "blog-post-" .. low
end""",
}
_FIELDS = {
    "generator": 'local function fields() return "Host: counter.example\\r\\n" end',
    # Twelve fields as a browser sends them to a proxy, and the proxy to the service: some 600 bytes.
    "visitor": """
local agents = {
  "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
  "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
    .. "Mobile/15E148 Safari/604.1",
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0",
}
local m = 0
local function fields()
  m = m + 1
  return "Host: counter.example\\r\\nUser-Agent: " .. agents[m % 3 + 1]
    .. "\\r\\nAccept: */*\\r\\nAccept-Language: en-US,en;q=0.9,de;q=0.8\\r\\nAccept-Encoding: gzip, deflate, br, zstd"
    .. "\\r\\nOrigin: https://blog.example\\r\\nReferer: https://blog.example/post/" .. m
    .. "\\r\\nSec-Fetch-Mode: cors\\r\\nX-Forwarded-For: 203.0." .. math.floor(m / 250) % 250 .. "." .. m % 250
    .. "\\r\\nX-Forwarded-Proto: https\\r\\nX-Request-Id: 0f9a2d0e5b7c4d22a1b2" .. string.format("%012x", m)
    .. "\\r\\nContent-Length: 0\\r\\n"
end""",
}
_SCRIPT = """
{pages}
{fields}
request = function()
  return "{method} /visits/" .. page() .. " HTTP/1.1\\r\\n" .. fields() .. "\\r\\n"
end
done = function(summary, latency)
  local wrong = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(99), wrong))
end
"""
KINDS = (
    ("POST", "generator", "turn"),
    ("GET", "generator", "turn"),
    ("POST", "visitor", "turn"),
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
    script = folder / "load.lua"
    script.write_text(_SCRIPT.format(method=method, fields=_FIELDS[fields], pages=_PAGES[pages]), encoding="utf-8")
    wrk = [shutil.which("wrk") or "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), server.url]
    before = cpu_seconds(server.worker_pids)
    with pinned(LOAD_CORE):
        done = subprocess.run(wrk, check=True, capture_output=True, text=True)
    used = cpu_seconds(server.worker_pids) - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found, done.stdout
    requests, duration_us, p99_us, wrong = (int(text) for text in found.groups())
    assert not wrong, f"{wrong} requests failed\n{done.stdout}"
    return Figure(used / requests * 1e6, requests / (duration_us / 1e6), p99_us)


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
