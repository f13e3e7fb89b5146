"""The rows of the campaign about clients and signals: slow clients, stops in the middle of requests, wrong reloads."""

from __future__ import annotations

import http.client
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.faults.rows import repeat
from tests.faults.service import FaultyService
from tests.support.oracle import BrokenError
from tests.support.ports import listening
from tests.support.servers import wait_until
from tests.support.slow_clients import KINDS, SlowClients

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HALF = b"POST /visits/half HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal"
# Far beyond the three seconds that a stop may take, on a machine with much else to do; gunicorn's own are 30.
_STOP_SECONDS = 15.0


def slow_clients(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """Slow clients of every kind beside the visitors."""
    with FaultyService(directory, seed=seed) as service:

        def fault(trial: int) -> None:
            kind = list(KINDS)[trial % len(KINDS)]
            with SlowClients(service.server.port, kind, 50):
                before = service.visitors.answers
                # A page that nobody has read, and a request for Flask.
                for path in (f"/visits/new/{trial}", "/health"):
                    connection = http.client.HTTPConnection("127.0.0.1", service.server.port, timeout=30)
                    connection.request("GET", path)
                    if connection.getresponse().status != http.HTTPStatus.OK:
                        raise BrokenError(f"{path} is not answered beside clients with {kind}")
                    connection.close()
                wait_until(lambda: service.visitors.answers > before + 20, f"visitors are answered beside {kind}")

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"


def stop_in_the_middle(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """SIGTERM, SIGINT or SIGQUIT under load, while clients have sent half a request; then started again."""
    longest = 0.0
    with FaultyService(directory, seed=seed) as service:

        def fault(_: int) -> None:
            nonlocal longest
            service.wait_for_workers()
            time.sleep(service.random.random() * 0.2)
            halves = [socket.create_connection(("127.0.0.1", service.server.port), timeout=30) for _ in range(8)]
            for half in halves:
                half.sendall(_HALF)
            start = time.monotonic()
            service.server.send_signal(service.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)))
            wait_until(lambda: not listening(service.server.port), "the port is closed", _STOP_SECONDS)
            status = service.server.wait()
            longest = max(longest, time.monotonic() - start)
            if status or longest > _STOP_SECONDS:
                raise BrokenError(f"the stop took {longest:.1f} s, status {status}: {service.server.log[-2000:]}")
            for half in halves:
                with suppress(ConnectionError):
                    if (answer := half.recv(4096)) and not answer.startswith(b"HTTP/1.1 408"):
                        raise BrokenError(f"half a request is answered {answer!r}")
                half.close()
            service.server.start()

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers, the longest stop {longest:.1f} s"


def reload_wrongly(directory: Path, trials: int, seed: int, progress: Callable[[int], None]) -> str:
    """SIGHUP with a typo in the file of shards, under load; then with the typo mended."""
    path = directory / "list"
    with FaultyService(directory, seed=seed, VISITS_SHARDS_FILE=str(path)) as service:
        right = path.read_text(encoding="ascii")

        def fault(_: int) -> None:
            service.wait_for_workers()
            workers = service.worker_pids()
            said = service.server.log.count("goes on with the old one")
            path.write_text(right.replace("redis://", "rediss//"), encoding="ascii")
            service.server.send_signal(signal.SIGHUP)
            wait_until(lambda: service.server.log.count("goes on with the old one") > said, "the mistake is told")
            before = service.visitors.answers
            wait_until(lambda: service.visitors.answers > before + 20, "visitors are answered")
            if service.worker_pids() != workers:
                raise BrokenError("a wrong configuration has replaced workers")
            path.write_text(right, encoding="ascii")
            service.server.send_signal(signal.SIGHUP)
            wait_until(lambda: not set(workers) & set(service.worker_pids()), "new workers with the right one")

        repeat(service, trials, progress, fault)
        return f"{service.visitors.answers} answers"
