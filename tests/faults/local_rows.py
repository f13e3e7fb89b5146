"""The rows of the campaign that need no gunicorn: lost replies, damaged journals, and the simulation."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

from tests.faults.simulation import run_seeds
from tests.support.oracle import BrokenError
from tests.support.proxy import Proxy
from tests.support.servers import running_valkeys
from visit_counter.config.settings import Shard
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.records import parse
from visit_counter.journal.segments import Journal
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PAGES = 40
_SHARE = 0.3


def lose_replies(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Replies to a flush lost, delayed or cut off after the shard has executed the batch, 30 %."""
    random = Random(seed)
    counted: dict[str, int] = {}
    failed = 0
    with ExitStack() as stack:
        servers = stack.enter_context(running_valkeys(directory / "shard_1", directory / "shard_2"))
        proxies = [Proxy(server.port, random) for server in servers]
        for proxy in proxies:
            stack.callback(proxy.close)
        stores = [
            RedisStore(Shard(f"s{n}", f"redis://127.0.0.1:{proxy.port}"), connect_seconds=0.2, apply_seconds=0.1)
            for n, proxy in enumerate(proxies)
        ]
        store = ShardedStore(stores)
        stack.callback(store.close)
        journal = Journal(directory / "journal")
        buffer, flusher = WriteBuffer(journal, fsync="os"), Flusher(journal, store, retain_segments=3)
        buffer.open()
        stack.callback(buffer.close)
        for trial in range(trials):
            run = [(f"page/{random.randrange(_PAGES)}", 1) for _ in range(3)]
            with buffer.lock:
                buffer.append(run)
            for page, visits in run:
                counted[page] = counted.get(page, 0) + visits
            for proxy in proxies:
                proxy.share = _SHARE
            failed += bool(flusher.flush().error)
            progress(trial + 1)
        for proxy in proxies:
            proxy.share = 0.0
        direct = ShardedStore(
            [
                RedisStore(Shard(f"s{n}", f"redis://127.0.0.1:{server.port}"), read_seconds=30.0, apply_seconds=30.0)
                for n, server in enumerate(servers)
            ]
        )
        stack.callback(direct.close)
        if error := Flusher(journal, direct).flush().error:
            raise BrokenError(f"the last flush failed: {error}")
        found = {page: direct.read(journal.writer, [page])[0].visits for page in counted}
        if found != counted:
            raise BrokenError(f"stored and counted differ: {sorted(found.items() ^ counted.items())}")
        return f"{failed} flushes failed, {sum(proxy.faults for proxy in proxies)} replies met a fault"


def damage_journal(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A real segment cut, and each of its bits flipped, at every byte offset (`trials`: how many visits it holds)."""
    del seed
    journal = Journal(directory / "journal")
    buffer = WriteBuffer(journal, fsync="os")
    buffer.open()
    with buffer.lock:
        for number in range(trials):
            buffer.append([(f"blog/päge {number}", 1 + number % 3)])
    buffer.close()
    [segment] = journal.segments()
    path = journal.path / segment.name
    whole = path.read_bytes()
    logging.disable(logging.CRITICAL)
    tried = 0
    try:
        for offset in range(len(whole)):
            for damaged in (whole[:offset], *(_flipped(whole, offset, bit) for bit in range(8))):
                path.write_bytes(damaged)
                _check(journal, whole, damaged)
                tried += 1
            progress(offset * trials // len(whole) + 1)
    finally:
        logging.disable(logging.NOTSET)
    return f"{tried} damaged journals of {len(whole)} bytes"


def _flipped(data: bytes, offset: int, bit: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ (1 << bit)]) + data[offset + 1 :]


def _check(journal: Journal, whole: bytes, damaged: bytes) -> None:
    """The visits of undamaged lines count, nothing counts that was not written, and the service goes on."""
    kept = set(damaged.split(b"\n")[:-1])
    written: dict[str, int] = {}
    undamaged: set[str] = set()
    for line in whole.split(b"\n")[:-1]:
        record = parse(line)
        assert record
        written[record.argument.decode()] = int(record.kind)
        if any(line in one for one in kept):
            undamaged.add(record.argument.decode())
    buffer = WriteBuffer(journal, fsync="os")
    buffer.open()
    try:
        found = dict(buffer.tables.current.visits)
        with buffer.lock:
            buffer.append([("after", 1)])
    finally:
        buffer.close()
    # A newline that was flipped joins two lines: the later one is found, the earlier one is damaged.
    if not found.items() <= written.items() or len(undamaged - found.keys()) > 1:
        raise BrokenError(f"found {found} where {written} was written and {sorted(undamaged)} is undamaged")
    again = WriteBuffer(journal, fsync="os")
    again.open()
    if again.tables.current.visits.get("after") != 1:
        raise BrokenError("a visit behind the damage is not counted")
    again.close()


def simulate(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Seeded in-process simulation: processes, disk, shards, crashes, power loss, random schedules."""
    del directory
    found = run_seeds(range(seed, seed + trials), progress)
    if found.error is not None:
        raise BrokenError(f"seed {found.seed}: {found.error.args[:-1]}")
    return f"{found.died} processes died"
