"""The speed of the write buffer and the flush: `python -m tests.performance.bench_buffer`. Ratios and microseconds.

1. `WriteBuffer.append` against a bare `os.write` of the same line to a file of the same kind, in one and two processes;
2. a flush of distinct pages into two local shards, against one pipelined stream of HINCRBY;
3. replaying a full journal at start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.servers import ValkeyServer
from visit_counter.config.settings import Shard
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.records import visit_line
from visit_counter.journal.segments import Journal
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGES = [f"blog/page-{number}" for number in range(1000)]


def _append(path: Path, visits: int) -> float:
    """Return the processor seconds of so many appends."""
    buffer = WriteBuffer(Journal(path), fsync="os")
    buffer.open()
    runs = [[(page, 1)] for page in _PAGES]
    for run in runs:
        buffer.append(run)
    started = time.process_time()
    for number in range(visits):
        with buffer.lock:
            buffer.append(runs[number % 1000])
    return time.process_time() - started


def _write(path: Path, visits: int) -> float:
    """Return the processor seconds of so many bare writes of the same lines."""
    descriptor = os.open(path / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lines = [visit_line(page, 1) for page in _PAGES]
    started = time.process_time()
    for number in range(visits):
        os.write(descriptor, lines[number % 1000])
    return time.process_time() - started


def _in_processes(function: Callable[[Path, int], float], path: Path, visits: int, processes: int) -> float:
    """Return the processor microseconds of one call, with so many processes at once."""
    path.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        seconds = pool.starmap(function, [(path, visits)] * processes)
    return max(seconds) / visits * 1e6


def appends(directory: Path, visits: int, turns: int) -> None:
    """Print the first comparison."""
    for processes in (1, 2):
        bare, ours = [], []
        for turn in range(turns):
            bare.append(_in_processes(_write, directory / f"bare_{processes}_{turn}", visits, processes))
            ours.append(_in_processes(_append, directory / f"ours_{processes}_{turn}", visits, processes))
        us, bare_us = min(ours), min(bare)
        print(f"append, {processes} process(es): {us:.2f} us, os.write {bare_us:.2f} us, {us / bare_us:.1f}x")


def flush(directory: Path, pages: int) -> None:
    """Print the second and the third comparison."""
    servers = [ValkeyServer(directory / f"shard_{n}", appendfsync="everysec").start() for n in (1, 2)]
    try:
        journal = Journal(directory / "journal")
        buffer = WriteBuffer(journal, fsync="os")
        buffer.open()
        for first in range(0, pages, 1000):
            buffer.append([(f"page/{number}", 1) for number in range(first, first + 1000)])
        buffer.close()
        print(f"start: {_replayed_a_second(journal, pages):,.0f} visits of distinct pages replayed a processor second")
        store = ShardedStore([RedisStore(Shard(f"s{s.port}", s.url), apply_seconds=60.0) for s in servers])
        result = Flusher(journal, store).flush()
        assert not result.error, result.error
        ours = result.pages / result.seconds
        store.close()
        theirs = pages / _stream(servers[0].port, pages)
        print(f"flush: {ours:,.0f} pages a second, a stream of HINCRBY {theirs:,.0f}, {ours / theirs:.2f}x")
    finally:
        for server in servers:
            server.kill()


def _replayed_a_second(journal: Journal, visits: int) -> float:
    started = time.process_time()
    again = WriteBuffer(journal, fsync="os")
    again.open()
    seconds = time.process_time() - started
    again.close()
    return visits / seconds


def start(directory: Path, visits: int) -> None:
    """Print how fast a journal of 1,000 pages with many visits each is replayed."""
    journal = Journal(directory / "many" / "journal")
    buffer = WriteBuffer(journal, fsync="os")
    buffer.open()
    for _ in range(visits // 1000):
        buffer.append([(page, 1) for page in _PAGES])
    buffer.close()
    print(f"start: {_replayed_a_second(journal, visits):,.0f} visits of 1,000 pages replayed in a processor second")


def _stream(port: int, pages: int) -> float:
    """Return the seconds of so many HINCRBY to one shard, 100 in a round trip."""
    commands = [
        b"*4\r\n$7\r\nHINCRBY\r\n$6\r\nstream\r\n$%d\r\n%b\r\n$1\r\n1\r\n" % (len(page), page)
        for page in (b"page/%d" % number for number in range(pages))
    ]
    with socket.create_connection(("127.0.0.1", port)) as client:
        started = time.monotonic()
        for first in range(0, pages, 100):
            client.sendall(b"".join(commands[first : first + 100]))
            replies = 0
            while replies < 100:
                replies += client.recv(1 << 16).count(b"\r\n")
        return time.monotonic() - started


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="The speed of the write buffer and the flush.")
    parser.add_argument("--visits", type=int, default=200_000)
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        appends(Path(directory), options.visits, options.turns)
        start(Path(directory), options.visits)
        flush(Path(directory) / "flush", options.pages)


if __name__ == "__main__":
    main()
