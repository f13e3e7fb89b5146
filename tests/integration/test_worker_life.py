"""A worker's life under gunicorn: limits, hooks, logs, reload, stop."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.support import processes
from tests.support.ports import listening
from tests.support.servers import REPOSITORY, wait_until
from tests.support.stub_server import STUB, StubServer


def written(file: Path) -> bool:
    return file.exists() and bool(file.read_text())


class Load:
    """Visitors who keep visiting, some on kept connections, and write down what failed."""

    def __init__(self, server: StubServer) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        paths = ("/visits/load", "/visits/wait/load", "/visits/load", "/calls")
        self._threads = [threading.Thread(target=self._visit, args=(path,)) for path in paths]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, path: str) -> None:
        client = self._server.client()
        while not self._stop.is_set():
            try:
                reply = client.ask("GET", path).answer()
            except OSError as error:
                self.failed.append(f"{path}: {error!r}")
                client = self._server.client()
                continue
            with self._lock:
                self.answered += 1
            if reply.status != 200:
                self.failed.append(f"{path}: {reply}")
            if reply.fields["connection"] == "close":
                client.close()
                client = self._server.client()

    def go_on(self, number: int) -> None:
        """Wait for this many more answers."""
        goal = self.answered + number
        wait_until(lambda: self.answered >= goal, f"{number} more answers came")


def test_a_reload_under_load_fails_no_request(tmp_path: Path) -> None:
    with StubServer(tmp_path, "workers = 2\n") as server:
        old = server.serving_pids()
        with Load(server) as load:
            for _ in range(2):
                load.go_on(200)
                server.send_signal(signal.SIGHUP)
                load.go_on(200)
            wait_until(lambda: not any(map(processes.state, old)), "the old workers are gone")
            load.go_on(200)
    assert load.failed == []


@pytest.mark.parametrize("at_first", [2, 1])
def test_kept_connections_are_shared_among_idle_workers(tmp_path: Path, at_first: int) -> None:
    log = tmp_path / "access"
    config = f"workers = {at_first}\naccesslog = {str(log)!r}\naccess_log_format = '%(p)s'\n"
    with StubServer(tmp_path, config) as server:
        if at_first == 1:
            server.serving_pids()
            server.send_signal(signal.SIGTTIN)

        def visit() -> list[str]:
            # A worker that the machine has not let run yet is not idle, and the kernel gives it nothing.
            known = set(log.read_text().split()) if log.exists() else set()
            wait_until(lambda: all(processes.state(int(pid[1:-1])) == "S" for pid in known), "the workers rest")
            server.client().ask("GET", "/visits/a").answer()
            return log.read_text().split()

        wait_until(lambda: len(set(visit())) == 2, "both workers answer")
        before = visit()
        after = [visit() for _ in range(48)][-1]
    shares = Counter(after) - Counter(before)
    assert len(shares) == 2
    assert min(shares.values()) >= 18, shares


def test_a_new_worker_gets_its_share_of_the_kept_connections_and_no_request_fails(tmp_path: Path) -> None:
    log = tmp_path / "access"
    config = f"workers = 1\nkeepalive = 60\naccesslog = {str(log)!r}\naccess_log_format = '%(p)s'\n"
    with StubServer(tmp_path, config) as server:
        clients = [server.client() for _ in range(8)]

        def visit() -> None:
            for at, client in enumerate(clients):
                reply = client.ask("POST", "/visits/a").answer()
                assert reply.status == 200
                if reply.fields["connection"] == "close":
                    client.close()
                    clients[at] = server.client()

        visit()
        server.send_signal(signal.SIGTTIN)

        def shares() -> list[int]:
            visit()
            return list(Counter(log.read_text().split()[-len(clients) :]).values())

        wait_until(lambda: min(shares()) in (3, 4, 5), "both workers have their share of the connections")


def test_a_worker_that_hangs_keeps_no_new_connection_from_the_other(tmp_path: Path) -> None:
    with StubServer(tmp_path, "workers = 2\n") as server:
        wait_until(lambda: len(server.serving_pids()) == 2, "both workers boot")
        hung, _ = server.serving_pids()
        os.kill(hung, signal.SIGSTOP)
        try:
            # One of these may be for the worker that hangs: the kernel has woken it in vain.
            answers = [server.client().ask("GET", "/visits/a").answer().status for _ in range(6)]
        finally:
            os.kill(hung, signal.SIGCONT)
    assert answers == [200] * 6


def test_the_access_log_counts_the_time_that_a_request_waited_for_its_page(tmp_path: Path) -> None:
    log, gate = tmp_path / "access", tmp_path / "gate"
    config = f"accesslog = {str(log)!r}\naccess_log_format = '%(U)s %(D)s'\n"
    with StubServer(tmp_path, config) as server:
        waits, others = server.client(), server.client()
        others.ask("GET", "/visits/a").answer()
        waits.ask("GET", f"/visits/wait/hold{gate}")
        others.ask("GET", "/visits/a").answer()
        arrived = time.monotonic()  # or before: the loop takes one turn after another
        for _ in range(100):
            others.ask("GET", "/visits/a").answer()
        held = time.monotonic() - arrived
        gate.touch()
        waits.answer()
        wait_until(lambda: "/wait/hold" in log.read_text(), "the request is logged")
    (logged,) = re.findall(r"/wait/hold\S* (\d+)", log.read_text())
    assert int(logged) >= held * 1e6


def test_max_requests_replaces_the_worker_and_fails_no_request(tmp_path: Path) -> None:
    with StubServer(tmp_path, "workers = 2\nmax_requests = 300\nmax_requests_jitter = 50\n") as server:
        with Load(server) as load:
            wait_until(lambda: server.log.count("Booting worker") >= 5, "workers were replaced")
        assert load.failed == []


def test_a_stopping_worker_finishes_what_is_under_way(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with StubServer(tmp_path) as server:
        held = server.client().ask("GET", f"/hold{gate}")
        kept = server.client()
        assert kept.ask("GET", "/visits/a").answer().fields["connection"] == "keep-alive"
        (pid,) = server.serving_pids()
        os.kill(pid, signal.SIGTERM)
        while kept.ask("GET", "/visits/a").answer().fields["connection"] == "keep-alive":
            pass
        assert kept.is_closed()
        gate.touch()
        assert held.answer().body == b"held"
        assert held.is_closed()
        assert server.stop() == 0


def test_a_stopping_worker_listens_no_more_though_a_request_is_under_way(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with StubServer(tmp_path, "bind = ['127.0.0.1:0']\n") as server:
        wait_until(lambda: "Listening at" in server.log, "gunicorn listens")
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", server.log)
        server.port = int(port)
        held = server.client().ask("GET", f"/hold{gate}")
        server.client().ask("GET", "/visits/a").answer()
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: not listening(int(port)), "nobody listens any more")
        gate.touch()
        assert held.answer().body == b"held"


def test_a_stopping_worker_does_not_wait_for_idle_clients_for_long(tmp_path: Path) -> None:
    with StubServer(tmp_path, "keepalive = 1000\ngraceful_timeout = 1000\n") as server:
        idle = server.client()
        idle.ask("GET", "/visits/a").answer()
        server.send_signal(signal.SIGTERM)
        assert idle.is_closed()
        assert server.stop() == 0


def test_a_worker_whose_master_was_killed_ends(tmp_path: Path) -> None:
    with StubServer(tmp_path) as server:
        (pid,) = server.serving_pids()
        server.send_signal(signal.SIGKILL)
        wait_until(lambda: not processes.state(pid), "the orphan is gone")
        server.stop()


def test_a_worker_tells_the_master_that_it_is_alive_idle_and_busy(tmp_path: Path) -> None:
    with StubServer(tmp_path) as server:
        (pid,) = server.serving_pids()
        (file,) = [file for file in Path(f"/proc/{pid}/fd").iterdir() if "/wgunicorn-" in str(file.readlink())]
        for load in (nullcontext(), Load(server)):
            with load:
                for _ in range(2):
                    told = file.stat().st_mtime
                    wait_until(lambda told=told: file.stat().st_mtime != told, "the worker says so again")  # type: ignore[misc]  # mypy infers no lambda with a default


def test_connections_beyond_the_limit_wait_until_one_leaves(tmp_path: Path) -> None:
    with StubServer(tmp_path, "worker_connections = 4\nthreads = 1\nkeepalive = 1000\n") as server:
        first = [server.client() for _ in range(4)]
        # The last one before the limit is not kept: room is left for others.
        kept = [client.ask("GET", "/visits/a").answer().fields["connection"] for client in first]
        assert "close" in kept
        second = [server.client().ask("GET", "/visits/a") for _ in range(4)]
        for client in first:
            client.close()
        for client in second:
            assert client.answer().status == 200
            client.close()


def test_thousands_of_idle_connections_are_kept_and_served(tmp_path: Path) -> None:
    number = 3000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * number:
        pytest.skip(f"only {hard} files may be open here")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with StubServer(tmp_path, f"worker_connections = {number + 100}\nkeepalive = 1000\n") as server:
            idle = []
            for _ in range(number):
                client = server.client()
                assert client.ask("GET", "/visits/a").answer().fields["connection"] == "keep-alive"
                idle.append(client)
            for client in idle:
                client.ask("POST", "/visits/a")
            for client in idle:
                assert client.answer().status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


NO_FILES = """
import os, resource
keepalive = 1000
def post_worker_init(worker):
    used = max(int(number) for number in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


def test_a_worker_that_is_out_of_files_takes_the_next_connection_once_it_has_one(tmp_path: Path) -> None:
    with StubServer(tmp_path, NO_FILES) as server:
        wait_until(lambda: "Booting worker" in server.log, "a worker boots")
        clients = [server.client().ask("GET", "/visits/a") for _ in range(20)]
        wait_until(lambda: "Cannot accept a connection" in server.log, "there is no room")
        for client in clients:
            assert client.answer().status == 200
            client.close()


LOG_FORMAT = (
    'access_log_format = \'%(h)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %({host}i)s %({content-type}o)s %(m)s %(U)s\'\n'
)


@pytest.mark.parametrize("path", ["/visits/a%20b", "/visits/wait/a%20b", "/nothing"])
def test_the_access_log_says_what_gthreads_says(tmp_path: Path, path: str) -> None:
    lines = []
    for worker in ("gthread", "visit_counter.server.worker.VisitWorker"):
        log = tmp_path / "access"
        log.unlink(missing_ok=True)
        with StubServer(tmp_path, f"accesslog = {str(log)!r}\n" + LOG_FORMAT, worker=worker) as server:
            server.client().ask("GET", path, "Referer: there", "User-Agent: test").answer()
            wait_until(partial(written, log), "the line is there")
        lines.append(log.read_text())
    assert lines[0] == lines[1]
    assert "there" in lines[0]


def test_request_hooks_are_called_for_hot_requests_too(tmp_path: Path) -> None:
    hooks = """
def pre_request(worker, request):
    worker.log.info("before %s", request.path)
def post_request(worker, request):
    worker.log.info("after %s", request.path)
"""
    with StubServer(tmp_path, hooks) as server:
        assert server.client().ask("POST", "/visits/hooked").answer().status == 200
        wait_until(lambda: "after /visits/hooked" in server.log, "the hook was called")
        assert "before /visits/hooked" in server.log


def test_several_sockets_are_served(tmp_path: Path) -> None:
    with StubServer(tmp_path, "bind = ['127.0.0.1:0', '127.0.0.1:0']\n") as server:
        wait_until(lambda: "Listening at" in server.log, "gunicorn listens")
        ports = re.findall(r"http://127\.0\.0\.1:(\d+)", server.log)
        assert len(ports) == 2
        for port in ports:
            server.port = int(port)
            assert server.client().ask("GET", "/visits/a").answer().status == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that is there; gunicorn does not look into it before the worker class says no."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--certfile", "{}", "--keyfile", "{}"], "TLS"),
        (["--proxy-protocol", "v1"], "proxy_protocol"),
        (["--protocol", "uwsgi"], "protocol"),
    ],
)
def test_what_the_worker_does_not_do_stops_the_start_with_one_line(
    certificate: Path, arguments: list[str], named: str
) -> None:
    command = [sys.executable, "-m", "gunicorn", "-k", "visit_counter.server.worker.VisitWorker", "-c", "/dev/null"]
    command += ["-b", "127.0.0.1:0", *(argument.format(certificate) for argument in arguments), STUB]
    environ = {**os.environ, "VISITS_PROFILE": "basic"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f"VisitWorker does not support {named}" in done.stderr
    assert "gthread" in done.stderr
    assert "Traceback" not in done.stderr
