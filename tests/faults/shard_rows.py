"""The rows of the campaign about shards that are not what they seem: garbage, wrong addresses, names, moving slots."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from tests.faults.flush_rows import WORKERS
from tests.faults.service import FaultyService
from tests.support.cluster import Cluster
from tests.support.oracle import BrokenError
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.under_load import PAGES, load
from visit_counter.shards.cluster.slots import SLOT_OF
from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.factory import make_store
from visit_counter.shards.ring import PARTITIONS, partition_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

S = TypeVar("S", bound=FaultyService)


class _Proxied(FaultyService):
    """The service under load, with a proxy in front of each shard."""

    def __enter__(self) -> Self:
        self.proxies: list[Proxy] = []
        return super().__enter__()

    def _start_shards(self) -> dict[str, str]:
        super()._start_shards()
        self.proxies = [Proxy(shard.port, self.random) for shard in self.shards]
        urls = [f"s{number}=redis://127.0.0.1:{proxy.port}" for number, proxy in enumerate(self.proxies)]
        return {"VISITS_SHARDS": ",".join(urls)}

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for proxy in self.proxies:
            proxy.close()


class _Named(FaultyService):
    """The service under load, whose shards have names that the hook in `inside` looks up."""

    def _start_shards(self) -> dict[str, str]:
        super()._start_shards()
        urls = [f"s{number}=redis://s{number}.shard.test:{shard.port}" for number, shard in enumerate(self.shards)]
        return {"VISITS_SHARDS": ",".join(urls)}


def _on_both_workers(  # noqa: PLR0917 - one call in each row
    kind: type[S],
    directory: Path,
    trials: int,
    seed: int,
    progress: Callable[[int], None],
    fault: Callable[[S], None],
) -> str:
    """Do a fault so many times, half of them under gthread; no answer may be wrong, and nothing a traceback."""
    answers = done = 0
    for worker, share in zip(WORKERS, ((trials + 1) // 2, trials // 2), strict=True):
        if not share:
            continue
        with kind(directory / worker, seed=seed, GUNICORN_CMD_ARGS=f"-k {worker}") as service:
            wait_until(partial(_all_have_names, service), "the shards to have their names")
            for trial in range(share):
                fault(service)
                progress(done + trial + 1)
                service.compare()
            if "Traceback" in service.server.log:
                raise BrokenError(f"a traceback: {service.server.log.partition('Traceback')[2][:1000]}")
            answers += service.visitors.answers
        done += share
    return f"{answers} answers"


def answer_garbage(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """A shard answers what no shard may answer, in the middle of the load."""

    def fault(service: _Proxied) -> None:
        proxy = service.random.choice(service.proxies)
        proxy.whats = ("garbage",)
        proxy.share = service.random.uniform(0.1, 1.0)
        time.sleep(service.random.uniform(0.05, 0.5))
        proxy.share = 0.0

    return _on_both_workers(_Proxied, directory, trials, seed, progress, fault)


def swap_addresses(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The addresses of two shards are swapped under the running service, and swapped back."""

    def fault(service: _Proxied) -> None:
        ports = [shard.port for shard in service.shards]
        for proxy, port in zip(service.proxies, reversed(ports), strict=True):
            proxy.lead_to(port)
        time.sleep(service.random.uniform(0.05, 1.0))
        for proxy, port in zip(service.proxies, ports, strict=True):
            proxy.lead_to(port)

    return _on_both_workers(_Proxied, directory, trials, seed, progress, fault)


def hang_name_server(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """The name server hangs while all connections to the shards are lost, and a worker at times."""

    def fault(service: _Named) -> None:
        hangs = service.dir / "faults.names"
        hangs.touch()
        try:
            for shard in service.shards:
                with shard.client() as client:
                    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            if service.random.random() < 0.3:
                service.wait_for_workers()
                os.kill(service.random.choice(service.worker_pids()), signal.SIGKILL)
                service.wait_for_workers()
            before = service.visitors.answers
            wait_until(lambda: service.visitors.answers > before + 100, "answers while the name server hangs")
            wait_until(lambda: service.pending() >= 0, "an answer of /health")
        finally:
            hangs.unlink()

    return _on_both_workers(_Named, directory, trials, seed, progress, fault)


def watch_cluster_slots(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Slots of a Redis Cluster move under load; status, ping and what is on disk are watched meanwhile."""
    dice = random.Random(seed)
    looks = visits = 0
    with (
        Cluster(directory / "cluster") as cluster,
        closing(ClusterStore(cluster.shard, connect_seconds=5, read_seconds=5, apply_seconds=10)) as watch,
    ):
        for trial in range(trials):
            for server in cluster.primaries():
                server.call("FLUSHALL")
            with load(directory / f"host_{trial}", [make_store(cluster.shard)], seed=trial) as oracle:
                for page in dice.sample(PAGES, 5):
                    slot = SLOT_OF[partition_of(page)]
                    source = cluster.owner_of(slot)
                    target = dice.choice([each for each in cluster.servers[:3] if each is not source])
                    cluster.move_slot(slot, source, target, meanwhile=partial(_look, watch))
                    looks += 1
                wait_until(lambda: watch.persist(1) is not False, "the disks to have everything")
            if oracle.mistakes:
                raise BrokenError(f"trial {trial}: {len(oracle.mistakes)} mistakes, the first: {oracle.mistakes[0]}")
            visits += oracle.visits
            progress(trial + 1)
    return f"{visits} visits, {looks} moves watched"


def _all_have_names(service: FaultyService) -> bool:
    for shard in service.shards:
        with shard.client() as client:
            if not client.exists("visits:{0}:shard"):
                return False
    return True


def _look(watch: ClusterStore) -> None:
    down = [row for row in watch.status("", range(PARTITIONS)) if not row.up or row.error]
    if down or not watch.ping() or watch.reason():
        raise BrokenError(f"a healthy cluster is told as {down}, {watch.reason()}")
