"""How the cost grows with pages, visits and shards: the figures of docs/scaling.md.

    python -m tests.performance.scaling [shard] [worker] [flush] [visits] [--millions 1 10]

shard    memory of a shard for each page, and the latency of reading one page, against a shard with 1,000 pages
worker   memory of a worker for each cached page and for each pending page; CPU of a visit that another worker counted
flush    seconds of a flush against the distinct pages in it, with two shards that sync every write
visits   CPU of a visit with 1, 2 and 4 shards: the worker's, its flushes' and the shards'

Ten million pages take 2 GB of memory and a minute.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.support.load import Load, percentile
from tests.support.own_shards import Service
from tests.support.processes import cpu_seconds, own_cpu_seconds, resident_mib
from tests.support.servers import ValkeyServer, running_valkeys
from visit_counter.config.settings import Shard
from visit_counter.counting.cache import LocalCache
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.pending import Table
from visit_counter.journal.records import Known
from visit_counter.journal.segments import Journal
from visit_counter.model.visits import Tally
from visit_counter.shards.redis.commands import partition_key, watermark_field
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import partition_of
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITER = "0123456789abcdef"
READS = 20_000
FILL_PAGES = 400_000  # in one round of pipelined HSETs


def page(number: int) -> str:
    """Return a page of 26 to 32 bytes, as long as a usual path."""
    return f"example.org/blog/article-{number}"


# -- a shard ---------------------------------------------------------------------------------------------------------


def store_of(server: ValkeyServer) -> RedisStore:
    """Return a store with a server that may be slow for a while."""
    return RedisStore(Shard(f"redis_{server.port}", server.url), read_seconds=60, connect_seconds=5, apply_seconds=60)


def fill(server: ValkeyServer, pages: range) -> None:
    """Put pages with counts of three digits, and a watermark for each partition, straight into a server."""
    with server.client(decode_responses=False, socket_timeout=600) as client:
        connection = client.connection_pool.get_connection()
        for first in range(pages.start, pages.stop, FILL_PAGES):
            fields: dict[int, list[bytes]] = {}
            for number in range(first, min(first + FILL_PAGES, pages.stop)):
                name = page(number)
                found = fields.setdefault(partition_of(name), [watermark_field(WRITER), b"1000:0123456789ab"])
                found += (name.encode(), b"%d" % (100 + number % 900))
            for partition, parts in fields.items():
                connection.send_packed_command([pack(b"HSET", partition_key(partition), *parts)])
            for _ in fields:
                connection.read_response()
        client.connection_pool.release(connection)


def memory(server: ValkeyServer) -> int:
    """Return the bytes that the server's data takes."""
    with server.client() as client:
        return int(client.info("memory")["used_memory"])


def latencies(store: RedisStore, pages: int, reads: int) -> list[float]:
    """Return the seconds of single reads of pages drawn at random."""
    random = Random(1)
    seconds = []
    for _ in range(reads):
        asked = [page(random.randrange(pages))]
        start = time.perf_counter()
        store.read(WRITER, asked)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_shard(folder: Path, millions: list[int]) -> None:
    """Print memory and latency for each size."""
    with ExitStack() as stack:
        folders = (folder / name for name in ("small_shard", "large_shard"))
        small, large = stack.enter_context(running_valkeys(*folders, appendonly="no"))
        fill(small, range(1000))
        small_store, large_store = (stack.enter_context(closing(store_of(server))) for server in (small, large))
        empty = memory(large)
        filled = 0
        print("   pages on the shard  bytes each  fill s   read p50 us   p99 us  against 1,000 pages (p50, p99)")
        for size in [million * 1_000_000 for million in millions]:
            start = time.perf_counter()
            fill(large, range(filled, size))
            seconds, filled = time.perf_counter() - start, size
            few: list[float] = []
            many: list[float] = []
            for _ in range(20):  # in turn, so that what else the machine does meets both
                few += latencies(small_store, 1000, READS // 20)
                many += latencies(large_store, size, READS // 20)
            ratios = [percentile(many, share) / percentile(few, share) for share in (0.5, 0.99)]
            print(
                f"{size:23,} {(memory(large) - empty) / size:11.1f} {seconds:7.1f} {percentile(many, 0.5) * 1e6:13.0f} "
                f"{percentile(many, 0.99) * 1e6:8.0f}  {ratios[0]:.2f}, {ratios[1]:.2f}",
                flush=True,
            )


# -- a worker --------------------------------------------------------------------------------------------------------


def grow_cache(pages: int) -> None:
    """Print the memory of cached pages."""
    before = resident_mib(os.getpid())
    cache = LocalCache(threshold=pages, ttl_seconds=5.0)
    for number in range(pages):
        cache.set(page(number), Known(0, 1000, 1_000_000 + number))
    print(f"{pages:23,} cached  {(resident_mib(os.getpid()) - before) * (1 << 20) / pages:7.1f} bytes each", flush=True)


def grow_table(pages: int) -> None:
    """Print the memory of pending pages."""
    before = resident_mib(os.getpid())
    table = Table(1, 1, Tally())
    for number in range(pages):
        table.visits.add([(page(number), 300 + number)])
    print(f"{pages:23,} pending {(resident_mib(os.getpid()) - before) * (1 << 20) / pages:7.1f} bytes each", flush=True)


def measure_following(folder: Path, visits: int = 200_000, together: int = 16) -> None:
    """Print the CPU time of a line that another worker of the host has appended, popular or not."""
    for pages in (1000, visits):
        journal = Journal(folder / f"followed_{pages}")
        writer, follower = WriteBuffer(journal, fsync="os"), WriteBuffer(journal, fsync="os")
        writer.open()
        follower.open()
        used = 0.0
        for first in range(0, visits, together):
            writer.append([(page(number % pages), 1) for number in range(first, first + together)])
            start = time.thread_time()
            follower.catch_up()
            used += time.thread_time() - start
        writer.close()
        follower.close()
        print(f"{pages:23,} pages: {used / visits * 1e6:.2f} us for a visit that another worker counted", flush=True)


def measure_worker(folder: Path, millions: list[int]) -> None:
    """Print memory for each size, in a process of its own for each, and what following the other workers costs."""
    measure_following(folder)
    for million in millions:
        for grow in (grow_cache, grow_table):
            process = multiprocessing.get_context("spawn").Process(target=grow, args=(million * 1_000_000,))
            process.start()
            process.join()


# -- a flush ---------------------------------------------------------------------------------------------------------


def measure_flush(folder: Path, sizes: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)) -> None:
    """Print the seconds of flushes with so many distinct pages, each of them visited twice."""
    with running_valkeys(*(folder / f"flush_{number}" for number in range(2))) as servers:
        print("     distinct pages    visits  journal bytes each  flush s  CPU us for a page: flush, shards")
        for size in sizes:
            journal = Journal(folder / f"journal_{size}")
            buffer = WriteBuffer(journal, fsync="os")
            buffer.open()
            for first in range(0, size, 500):
                run = [(page(number), 1) for number in range(first, min(first + 500, size))]
                for _ in range(2):
                    buffer.append(run)
            written = journal.size_bytes()
            buffer.close()
            store = ShardedStore([store_of(server) for server in servers])
            gc.collect()
            before = time.process_time(), own_cpu_seconds(server.pid for server in servers)
            result = Flusher(journal, store).flush()
            after = time.process_time(), own_cpu_seconds(server.pid for server in servers)
            own, shards = ((now - then) / size * 1e6 for now, then in zip(after, before, strict=True))
            store.close()
            assert result.visits == 2 * size, result
            print(
                f"{size:19,} {result.visits:9,} {written / result.visits:19.1f} {result.seconds:8.3f} "
                f"{own:25.1f} {shards:7.1f}",
                flush=True,
            )


# -- a visit ---------------------------------------------------------------------------------------------------------


def cost(service: Service) -> Iterator[float]:
    """Give the CPU seconds so far: of the worker, of its flushes, of the shards."""
    (worker,) = service.gunicorn.worker_pids
    own = own_cpu_seconds([worker])
    yield own
    yield cpu_seconds([worker]) - own
    yield own_cpu_seconds(shard.pid for shard in service.shards)


def measure_visits(folder: Path, rate: float = 2000, pages: int = 2000, seconds: float = 20) -> None:
    """Print the CPU time of a visit with 1, 2 and 4 shards."""
    print(" shards   visits   worker us  flushes us  shards us of a visit    p50 ms   p99 ms")
    for shards in (1, 2, 4):
        environ: dict[str, Any] = {"VISITS_FLUSH_SECONDS": "5"}
        with closing(Service(folder / f"visits_{shards}", pages, workers=1, shards=shards, **environ)) as service:
            load = Load(service.gunicorn.port, service.pages, rate=rate, posts=1.0)
            load.make_known(lambda service=service: service.every_worker_serves(16))  # type: ignore[misc]  # mypy infers no lambda with a default
            before = list(cost(service))
            load.run(seconds)
            used = [now - then for now, then in zip(cost(service), before, strict=True)]
            taken = [sample.seconds for sample in load.samples]
            each = [f"{one / len(taken) * 1e6:11.1f}" for one in used]
            print(
                f"{shards:7} {len(taken):8} {''.join(each)} {percentile(taken, 0.5) * 1e3:23.2f} "
                f"{percentile(taken, 0.99) * 1e3:8.2f}",
                flush=True,
            )
            load.close()


def main() -> int:
    """Measure what was named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["shard", "worker", "flush", "visits", []])
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10], help="of pages")
    arguments = parser.parse_args()
    what = arguments.what or ["shard", "worker", "flush", "visits"]
    with tempfile.TemporaryDirectory() as name:
        if "shard" in what:
            measure_shard(Path(name), arguments.millions)
        if "worker" in what:
            measure_worker(Path(name), arguments.millions)
        if "flush" in what:
            measure_flush(Path(name))
        if "visits" in what:
            measure_visits(Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
