"""The rows of the campaign in which a flush meets what refuses it, hangs, or was written by somebody else.

Half of the trials of a row with a service run on gunicorn's own thread workers, half on ours.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

from tests.faults.service import FaultyService
from tests.support.host import Host
from tests.support.oracle import BrokenError
from tests.support.servers import ValkeyServer, wait_until
from visit_counter.config.settings import Shard
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint, acknowledge
from visit_counter.journal.segments import Journal
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKERS = ("visit_counter.server.worker.VisitWorker", "gthread")
_BULK_PAGES = 5100  # more than the service flushes in one of its own threads


def _on_both_workers(
    directory: Path,
    trials: int,
    seed: int,
    progress: Callable[[int], None],
    fault: Callable[[FaultyService, int], None],
) -> str:
    answers = done = 0
    for worker, share in zip(WORKERS, ((trials + 1) // 2, trials // 2), strict=True):
        if not share:
            continue
        arguments = f"-k {worker}"
        with FaultyService(directory / worker, seed=seed, GUNICORN_CMD_ARGS=arguments) as service:
            for trial in range(share):
                fault(service, trial)
                done += 1
                progress(done)
                service.compare()
            answers += service.visitors.answers
    return f"{answers} answers"


def _health(service: FaultyService) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{service.server.url}/health", timeout=2) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))
    except (OSError, ValueError):
        return {}


def _is_told(service: FaultyService, *words: str) -> bool:
    said = _health(service)
    return said.get("api_status") == "degraded" and all(word in said.get("reason", "") for word in words)


def _is_well(service: FaultyService) -> bool:
    return _health(service).get("api_status") == "healthy"


def refuse(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard is full, a replica, or lacks a right: it answers reads and refuses what a flush brings."""
    kinds = (
        ("maxmemory", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        ("read only replica", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        ("permission", ("ACL", "SETUSER", "default", "-evalsha"), ("ACL", "SETUSER", "default", "+@all")),
    )

    def fault(service: FaultyService, trial: int) -> None:
        said, spoil, mend = kinds[trial % len(kinds)]
        number = service.random.randrange(2)
        with service.shards[number].client() as client:
            client.execute_command(*spoil)
            wait_until(lambda: _is_told(service, f"s{number}: ", said), f"health says {said}", 60)
            time.sleep(service.random.random() * 0.5)
            client.execute_command(*mend)
        wait_until(lambda: _is_well(service), "health is well again", 60)

    return _on_both_workers(directory, trials, seed, progress, fault)


def hang(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The flush process hangs (SIGSTOP) and goes on, or is killed."""

    def fault(service: FaultyService, trial: int) -> None:
        step = service.random.choice(("send", "reply", "confirm"))
        with service.at_rest():
            wait_until(lambda: service.pending() == 0, "nothing is pending, so no worker flushes itself", 60)
            pages = [f"bulk/{trial}/{number}" for number in range(_BULK_PAGES)]
            if step != "confirm":  # which a flush of nothing reaches, too
                service.arm("stop", step)
            buffer = WriteBuffer(Journal(service.dir / "data" / "journal"), fsync="os")
            buffer.open()
            with closing(buffer), buffer.lock:
                buffer.append([(page, 1) for page in pages])
            for page in pages:
                service.oracle.begin(page, 1)
                service.oracle.acknowledge(page, 1)
        if step == "confirm":
            service.arm("stop", step)
        pid = service.reached("stop", step)
        wait_until(lambda: _is_told(service, "no flush has reached every shard for"), "the hang is told", 60)
        os.kill(pid, signal.SIGKILL if trial % 2 else signal.SIGCONT)
        wait_until(lambda: _is_well(service), "health is well again", 60)
        service.wait_for_workers()

    return _on_both_workers(directory, trials, seed, progress, fault)


def write_into(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Somebody writes what is no count, no watermark or no partition into a shard, and mends it later."""

    def fault(service: FaultyService, trial: int) -> None:
        client, page = _shard_with_a_page(service)
        with client:
            kind = ("count", "watermark", "type")[trial % 3]
            mend = _spoil(client, page, kind)
            word = {"count": "holds no count", "watermark": "which no flush wrote", "type": "is no partition"}[kind]
            wait_until(lambda: any(word in note for note in _health(service).get("damage", ())), f"{kind}: told", 60)
            # Others are flushed and forgotten meanwhile.
            before = _floor(service)
            if kind != "type":
                wait_until(lambda: _floor(service) > before + 3, "flushes go on", 60)
            mend()
            wait_until(lambda: "failed" not in _health(service).get("reason", "failed"), "flushes are well again", 60)
            _acknowledge(service)

    return _on_both_workers(directory, trials, seed, progress, fault)


def _shard_with_a_page(service: FaultyService) -> tuple[Any, str]:
    """Return a client of the shard that has a page which is visited all the time, and the page."""
    while True:
        page = f"shared/{service.random.randrange(20)}"
        for shard in service.shards:
            client = shard.client()
            if client.hexists(f"visits:{{{partition_of(page)}}}", page):
                return client, page
            client.close()
        time.sleep(0.05)


def _spoil(client: Any, page: str, kind: str) -> Callable[[], None]:
    key = f"visits:{{{partition_of(page)}}}"
    if kind == "watermark":
        others = {"\tlosses", "\tstamp"}
        [mark] = [f for f in client.hkeys(key) if f.startswith("\t") and "aside" not in f and f not in others]
        client.hset(key, mark, "nonsense")
        return lambda: None
    if kind == "type":
        with client.pipeline() as together:
            together.rename(key, f"{key}:away").rpush(key, "a list").execute()
        return lambda: client.pipeline().delete(key).rename(f"{key}:away", key).execute()
    script = client.register_script(
        # What a person does: the count as it was, and what was set aside since.
        "local aside = tonumber(redis.call('HGET', KEYS[1], '\\taside\\t' .. ARGV[1]) or 0) "
        "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] + aside, '\\taside\\t' .. ARGV[1], 0, '\\taside', 0)"
    )
    spoil = client.register_script(
        "local was = redis.call('HGET', KEYS[1], ARGV[1]) redis.call('HSET', KEYS[1], ARGV[1], 'x') return was"
    )
    was = spoil(keys=[key], args=[page])
    return lambda: script(keys=[key], args=[page, was])


def _floor(service: FaultyService) -> int:
    return Checkpoint.load(service.dir / "data" / "journal" / "state.json").floor


def _acknowledge(service: FaultyService) -> None:
    """Sign the damage: what is found next is told anew."""
    path = service.dir / "data" / "journal"
    acknowledge(path, Checkpoint.load(path / "state.json").damage, "the campaign")


def promote_replica(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A replica hangs until its primary has given it up, and is promoted much later; the primary is gone."""
    random = Random(seed)
    counted = 0
    for trial in range(trials):
        folder = directory / str(trial)
        options: dict[str, Any] = {
            "repl_timeout": "1",
            "repl_ping_replica_period": "1",
            "repl_diskless_sync_delay": "0",
        }
        primary = ValkeyServer(folder / "primary", **options).start()
        replica = ValkeyServer(folder / "replica", replicaof=f"127.0.0.1 {primary.port}", **options).start()
        try:
            visits = _count_and_promote(folder, primary, replica, random)
        finally:
            replica.stop(signal.SIGKILL)
            primary.kill()
        counted += visits
        progress(trial + 1)
    return f"{counted} visits"


def _count_and_promote(folder: Path, primary: ValkeyServer, replica: ValkeyServer, random: Random) -> int:
    counted: dict[str, int] = {}

    def flush(server: ValkeyServer, visits: int) -> Checkpoint:
        # A process of its own each time: what was seen is remembered by the host.
        store = RedisStore(Shard("main", server.url), connect_seconds=5, read_seconds=5)
        host = Host(folder, [store], retain_segments=0)
        counter = host.process()
        with closing(store), closing(host):
            for _ in range(visits):
                page = f"page/{random.randrange(50)}"
                counter.record(page)
                counted[page] = counted.get(page, 0) + 1
            wait_until(lambda: not host.flusher.flush().error, "the flush reaches the shard")
            for page, number in counted.items() if not visits else ():
                if host.stored(page) != number:
                    raise BrokenError(f"{page}: {host.stored(page)} stored, {number} acknowledged")
            return Checkpoint.load(host.journal.state_path)

    def connected() -> int:
        with primary.client() as client:
            return int(client.info("replication")["connected_slaves"])

    wait_until(lambda: connected() == 1, "the replica is connected")
    wait_until(lambda: bool(flush(primary, 10).replicas), "the replica is seen")
    wait_until(lambda: not flush(primary, 1).unpersisted, "the replica has all of it on its disk")
    replica.freeze()
    wait_until(lambda: connected() == 0, "the primary has given the replica up", 60)
    for _ in range(random.randint(3, 40)):
        state = flush(primary, random.randint(1, 20))
    if [(shard, name) for shard, name, _ in state.replicas_away()] != [("main", f"127.0.0.1:{replica.port}")]:
        raise BrokenError(f"the replica is not told of: {state.replicas}")
    primary.kill()
    replica.thaw()
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    flush(replica, 5)
    state = flush(replica, 0)
    if state.damage or state.replicas_away():
        raise BrokenError(f"told without a cause: {state.damage} {state.replicas}")
    return sum(counted.values())
