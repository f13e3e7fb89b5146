"""What a worker takes: `python -m tests.performance.worker_size [million_pages]`.

Memory of a worker: started; with 5,000 idle kept connections; after a million distinct pages. CPU of a visit to a page
never seen. Prints a line for each.
"""

from __future__ import annotations

import resource
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.performance.life.bench import visit_each
from tests.performance.worker import WORKER, Load, measure, two_shards
from tests.support.processes import own_cpu_seconds, pss_mb
from tests.support.servers import GunicornServer

IDLE = 5000


def main(millions: float = 1) -> None:
    """Measure and print."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        urls = two_shards(stack, folder)
        options = ("-k", WORKER, "--worker-connections", str(IDLE + 500), "--keep-alive", "3600")
        one = GunicornServer(folder / "one", *options, "-w", "1", port=0, VISITS_SHARDS=urls).start()
        stack.callback(one.stop)
        (pid,) = one.worker_pids
        print(f"memory, started: {pss_mb(pid):.1f} MB")
        idle = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(IDLE)]
        for sock in idle:
            sock.sendall(b"POST /visits/idle HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        print(f"memory, with {IDLE} idle connections: {pss_mb(pid):.1f} MB")
        load = Load("with idle connections", "POST", "/visits/", one.port, lambda: one.worker_pids)
        measure(load, 1, folder)
        print(f"with these connections open: {measure(load, 5, folder).per_second:,.0f} visits a second")
        for sock in idle:
            sock.close()
        one.stop()
        many = GunicornServer(folder / "many", "-k", WORKER, "-w", "1", port=0, VISITS_SHARDS=urls).start()
        (pid,) = many.worker_pids
        before = own_cpu_seconds([pid])
        visit_each(many.port, range(int(millions * 1_000_000)))
        print(f"memory, after {millions} million distinct pages: {pss_mb(pid):.1f} MB")
        print(f"CPU of a visit to a page never seen: {(own_cpu_seconds([pid]) - before) / millions:.0f} us")
        many.stop()


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:]))
