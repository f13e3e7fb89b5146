"""The load generator wrk with requests made as generators, browsers and crawlers make them; one run gives a `Result`.

Header fields are those of a load generator, always the same, or those that visitors and proxies send, with an address
and a request id that are new each time. Pages are 1,000 in turn, 100,000 visited as pages are (Zipf), or always new.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECTIONS = 16

# `turn` gives one page after another; `zipf` draws number n with a likelihood of 1/n; `new` gives no page twice.
PAGES = {
    "turn": 'local n = 0; local function page() n = (n + 1) % 1000; return "blog-post-" .. n end',
    "new": 'local n = 0; local function page() n = n + 1; return "blog-post-" .. n end',
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
FIELDS = {
    "generator": 'local function fields() return "Host: counter.example\\r\\n" end',
    "closing": 'local function fields() return "Host: counter.example\\r\\nConnection: close\\r\\n" end',
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
local methods, sent = {{ {methods} }}, 0
request = function()
  sent = sent + 1
  return methods[sent % #methods + 1] .. " {path}" .. page() .. " HTTP/1.1\\r\\n" .. fields() .. "\\r\\n"
end
{delay}
done = function(summary, latency)
  local wrong = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(99), wrong))
end
"""


class Requests(NamedTuple):
    """What is asked: methods in turn (`GET`, or `POST GET`), names of FIELDS and PAGES, and what precedes the page.

    With `pause_ms` each connection rests that long between an answer and its next request.
    """

    method: str = "POST"
    fields: str = "generator"
    pages: str = "turn"
    path: str = "/visits/"
    pause_ms: int = 0

    def script(self) -> str:
        """Return the Lua script that makes them."""
        return _SCRIPT.format(
            methods=", ".join(f'"{method}"' for method in self.method.split()),
            path=self.path,
            fields=FIELDS[self.fields],
            pages=PAGES[self.pages],
            delay=f"delay = function() return {self.pause_ms} end" if self.pause_ms else "",
        )


class Result(NamedTuple):
    """What one run measured."""

    requests: int
    seconds: float
    p99_us: float
    wrong: int  # answers that were errors, and connections that failed

    @property
    def per_second(self) -> float:
        """The requests of a second."""
        return self.requests / self.seconds


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Let this thread, and the children it starts meanwhile, run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(
    url: str, requests: Requests, seconds: float, folder: Path, *, core: int, connections: int = CONNECTIONS
) -> subprocess.Popen[str]:
    """Start wrk with one thread on a core; `result` waits for it. wrk counts in whole seconds, at least one."""
    script = folder / f"{'-'.join(requests[:3]).replace(' ', '-')}.lua"
    script.write_text(requests.script(), encoding="utf-8")
    wrk = [shutil.which("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    with pinned(core):
        return subprocess.Popen([*wrk, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(process: subprocess.Popen[str], *, errors_allowed: bool = False) -> Result:
    """Wait until wrk ends; return what it measured. Fails if a request did, unless errors are allowed."""
    text, _ = process.communicate()
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", text)
    assert found, text
    requests, duration_us, p99_us, wrong = (int(number) for number in found.groups())
    assert errors_allowed or not wrong, f"{wrong} requests failed\n{text}"
    return Result(requests, duration_us / 1e6, p99_us, wrong)


def run(
    url: str, requests: Requests, seconds: float, folder: Path, *, core: int, connections: int = CONNECTIONS
) -> Result:
    """Run wrk once."""
    return result(start(url, requests, seconds, folder, core=core, connections=connections))
