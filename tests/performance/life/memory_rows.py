"""Rows of memory: an idle service with all its processes, and a worker that has seen many pages. PSS, in MB."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.performance import wrk
from tests.performance.life.bench import Line, at_most, visit_each
from tests.support import processes
from tests.support.ports import free_ports
from tests.support.servers import GunicornServer

if TYPE_CHECKING:
    from tests.performance.life.bench import Bench


def idle(bench: Bench) -> list[Line]:
    """All processes of an idle service as it starts by default: two workers, two embedded shards."""
    with bench.own_folder() as folder:
        ports = free_ports(2)
        server = GunicornServer(folder, VISITS_EMBEDDED_PORTS=",".join(map(str, ports)))
        try:
            with wrk.pinned(bench.server_core):
                server.start()
            time.sleep(bench.effort.settle)
            workers = server.worker_pids
            parts: Counter[str] = Counter()
            # The shards, and the supervisor that has their ports in its arguments, are no children of the master.
            shards = {pid for port in ports for mark in ":=" for pid in processes.with_argument(f"{mark}{port}")}
            for pid in shards | set(processes.tree(server.pid)):
                name = "master" if pid == server.pid else "workers" if pid in workers else processes.name_of(pid)
                parts[name] += round(processes.pss_mb(pid) * 10)
        finally:
            server.stop()
    shown = ", ".join(f"{name.rpartition('.')[2]} {tenths / 10}" for name, tenths in parts.most_common())
    return [at_most("idle, all processes, PSS", sum(parts.values()) / 10, 45, "MB", f" ({shown})")]


def worker(bench: Bench) -> list[Line]:
    """A worker after a visit to each of many pages."""
    pages = bench.effort.worker_pages
    with bench.service() as (server, _):
        (pid,) = server.worker_pids
        started = processes.pss_mb(pid)
        visit_each(server.port, range(pages))
        used = processes.pss_mb(pid)
    more = f" ({started:.0f} MB when it started)"
    return [at_most(f"a worker after {pages:,} distinct pages, PSS", used, 100, "MB", more)]
