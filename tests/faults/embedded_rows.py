"""The rows of the campaign in which the embedded shards, or what watches them, meet a fault under load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from tests.faults import rows
from tests.faults.service import FaultyService
from tests.support import processes
from tests.support.oracle import BrokenError
from tests.support.ports import free_ports, listening
from tests.support.servers import REPOSITORY, GunicornServer, wait_until
from visit_counter.config import embedded_files as files
from visit_counter.errors import EmbeddedError
from visit_counter.shards.redis.resp import identify

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = ("redis_7070", "redis_7071")
_WAIT_SECONDS = 60


class EmbeddedService(FaultyService):
    """The service with its own shards, and visitors."""

    def __init__(self, directory: Path, *, seed: int) -> None:
        super().__init__(directory, seed=seed)
        self.data = directory / "data"
        self.shards = []
        self.ports = free_ports(2)

    def _start_shards(self) -> dict[str, str]:
        return {"VISITS_EMBEDDED_PORTS": ",".join(map(str, self.ports))}

    @property
    def supervisor_pid(self) -> int:
        """The process that runs the first shard."""
        return int(files.supervisor_lock(self.data, _NAMES[0]).read_text().split()[1])

    @property
    def server_pids(self) -> list[int]:
        """The processes of the servers, 0 for one that does not run."""
        return [files.server_pid(files.shard_dir(self.data, name)) for name in _NAMES]

    def shards_are_there(self) -> bool:
        """Tell whether a supervisor runs and all servers answer."""
        password = files.read_password(files.password_file(self.data))
        return all(
            files.is_supervised(self.data, name) and identify(port, files.shard_dir(self.data, name), password).ready
            for name, port in zip(_NAMES, self.ports, strict=True)
        )

    def stored(self) -> dict[str, int]:
        """Every count in the shards."""
        counts: dict[str, int] = {}
        password = files.read_password(files.password_file(self.data))
        for port in self.ports:
            client: Any = redis.Redis("127.0.0.1", port, password=password, decode_responses=True)
            with client:
                for key in client.scan_iter("visits:{*}", count=5000):
                    if client.type(key) == "hash":
                        counts |= {page: int(n) for page, n in client.hgetall(key).items() if not page.startswith("\t")}
        return counts

    def run_command(self) -> None:
        """Run `flask shards status` beside the service."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
        subprocess.run(
            [Path(sys.executable).with_name("flask"), "shards", "status"],
            cwd=REPOSITORY,
            env=kept | self._start_shards() | {"VISITS_DATA_DIR": str(self.data)},
            capture_output=True,
            check=False,
            timeout=_WAIT_SECONDS,
        )

    def files_are_whole(self) -> bool:
        """Tell whether the servers have written anew what was removed."""
        with contextlib.suppress(EmbeddedError, OSError, redis.RedisError):
            password = files.read_password(files.password_file(self.data))
            if not self.shards_are_there():
                return False
            for name, port in zip(_NAMES, self.ports, strict=True):
                client: Any = redis.Redis("127.0.0.1", port, password=password)
                manifest = files.shard_dir(self.data, name) / "appendonlydir" / "appendonly.aof.manifest"
                with client:
                    if client.info("persistence")["aof_rewrite_in_progress"] or not manifest.exists():
                        return False
            return True
        return False

    def restart(self) -> None:
        """Start the service, which has ended, at its address and with its shards on other ports."""
        self.ports = free_ports(2)
        self._environ |= self._start_shards()
        port = self.server.port
        self.server = GunicornServer(self.dir, "--preload", "-w", str(self._workers), port=port, **self._environ)
        self.server.start()


def kill_supervisor(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Kill -9 of the embedded shards' supervisor and of one of them; a command meanwhile, in each fourth trial."""
    with EmbeddedService(directory, seed=seed) as service:

        def fault(trial: int) -> None:
            supervisor, servers = service.supervisor_pid, service.server_pids
            victim = service.random.randrange(2)
            for pid in service.random.sample([supervisor, servers[victim]], 2):
                os.kill(pid, signal.SIGKILL)
                time.sleep(service.random.random() * 0.2)
            if trial % 4 == 3:
                service.run_command()
            wait_until(service.shards_are_there, f"the shards are back; the log: {service.server.log[-2000:]}", 60)
            if service.server_pids[1 - victim] != servers[1 - victim]:
                raise BrokenError("the healthy server was ended under the service")

        rows.repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def change_ports(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Other ports for the embedded shards at the next start, after a stop or after kill -9 of supervisor and master."""
    with EmbeddedService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            time.sleep(service.random.random() * 0.3)
            if service.random.random() < 0.5:
                service.server.stop()
            else:
                workers = service.worker_pids()
                os.kill(service.supervisor_pid, signal.SIGKILL)
                service.server.stop(signal.SIGKILL)
                wait_until(lambda: not any(map(processes.runs, workers)), "the workers have ended", _WAIT_SECONDS)
            before = service.ports
            service.restart()
            if any(map(listening, before)):
                raise BrokenError(f"a server still listens on one of the ports before, {before}")

        rows.repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def remove_files(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """All files of the embedded shards, or of one of them, removed under the running servers; then a restart."""
    with EmbeddedService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            time.sleep(service.random.random() * 0.3)
            name = service.random.choice(("", *_NAMES))
            # The supervisor may put files back while others are still being removed.
            shutil.rmtree(files.shards_dir(service.data) / name, ignore_errors=True)
            wait_until(service.files_are_whole, f"the files are there; the log: {service.server.log[-2000:]}", 60)
            service.server.stop()
            service.restart()

        rows.repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"
