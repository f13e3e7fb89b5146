"""The service with shards of its own and pages that it knows: what a load is put on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.servers import GunicornServer, ValkeyServer
from visit_counter.config.settings import Shard
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import Ring, partition_of

if TYPE_CHECKING:
    from tests.support.load import Load


class Service:
    """gunicorn and shards of its own, in a directory; `pages` are known to every worker."""

    def __init__(
        self, folder: Path, pages: int, *arguments: str, workers: int, shards: int = 2, **environ: Any
    ) -> None:
        self.names = [f"shard_{number}" for number in range(shards)]
        self.shards = [ValkeyServer(folder / name).start() for name in self.names]
        urls = ",".join(f"{name}={shard.url}" for name, shard in zip(self.names, self.shards, strict=True))
        # A load would take an idle connection that is closed at the wrong moment for a request without an answer.
        patient = ("--keep-alive", "60", "-w", str(workers))
        self._workers = workers
        self.gunicorn = GunicornServer(folder / "service", *patient, *arguments, VISITS_SHARDS=urls, **environ).start()
        ring = Ring(self.names)
        self.pages = [f"blog/article-{number}" for number in range(pages)]
        self.owner = {page: ring.shard_of(partition_of(page)) for page in self.pages}

    def every_worker_serves(self, connections: int) -> bool:
        """Tell whether all workers run, which start one after another, and each has so many clients."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
        port = f":{self.gunicorn.port:04X}"
        served = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(port) and line[3] == "01"}
        pids = self.gunicorn.worker_pids
        return len(pids) == self._workers and all(
            sum(_target(link) in served for link in Path(f"/proc/{pid}/fd").iterdir()) >= connections for pid in pids
        )

    def stored(self) -> dict[str, int]:
        """Return what the shards hold of each page."""
        found: dict[str, int] = {}
        for name, server in zip(self.names, self.shards, strict=True):
            store = RedisStore(Shard(name, server.url), connect_seconds=5, read_seconds=5)
            mine = [page for page in self.pages if self.owner[page] == name]
            found.update(zip(mine, [stored.visits for stored in store.read("", mine)], strict=True))
            store.close()
        return found

    def lost_and_doubled(self, load: Load) -> tuple[int, int]:
        """End the service, whose last flush brings everything into the shards, and compare."""
        self.gunicorn.stop()
        return load.oracle.compare(self.stored().__getitem__)

    def close(self) -> None:
        """End what runs."""
        self.gunicorn.stop()
        for server in self.shards:
            server.kill()


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""
