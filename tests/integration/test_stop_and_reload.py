"""How the service stops while clients are in the middle of a request, and what a reload does with a wrong setting."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.http_client import Client
from tests.support.ports import listening
from tests.support.servers import GunicornServer, ValkeyServer, wait_until

Make = Callable[..., GunicornServer]
Connect = Callable[[GunicornServer], Client]
WORKERS = ("visit_counter.server.worker.VisitWorker", "gthread")
# gunicorn's own graceful time-out is 30 s: a stop that waits for it is far beyond this.
LONG_SECONDS = 15.0
HALF = b"POST /visits/half HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal"


@pytest.fixture
def connect() -> Iterator[Callable[[GunicornServer], Client]]:
    """Connect to a service; what the test leaves open is closed after it."""
    with ExitStack() as stack:

        def connect(server: GunicornServer) -> Client:
            return Client(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))

        yield connect


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_closes_the_port_at_once_and_waits_for_no_half_request(
    gunicorn: Make, connect: Connect, worker: str, number: int
) -> None:
    server = gunicorn("-k", worker, VISITS_PROFILE="basic").start()
    whole = connect(server).ask("POST", "/visits/whole")
    assert whole.answer().status == 200
    halves = [connect(server).send(HALF) for _ in range(8)]
    start = time.monotonic()
    server.send_signal(number)
    wait_until(lambda: not listening(server.port), "nobody listens any more")
    assert server.wait() == 0
    assert time.monotonic() - start < LONG_SECONDS
    for half in halves:
        if worker == WORKERS[0] and number == signal.SIGTERM:
            assert half.answer().status == 408
        assert half.is_closed()
    whole.close()
    assert "Traceback" not in server.log
    assert "SIGKILL" not in server.log


def test_what_has_connected_before_a_stop_is_answered(gunicorn: Make, connect: Connect) -> None:
    server = gunicorn("-w", "1", VISITS_PROFILE="basic").start()
    (worker,) = server.worker_pids
    os.kill(worker, signal.SIGSTOP)
    clients = [connect(server).ask("POST", "/visits/a") for _ in range(20)]
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: "Handling signal: term" in server.log, "the master stops")
    os.kill(worker, signal.SIGCONT)
    assert [client.answer().status for client in clients] == [200] * 20
    assert server.wait() == 0


def test_a_worker_that_boots_ends_when_it_is_told_to(gunicorn: Make, valkey: ValkeyServer) -> None:
    """Gunicorn's own would miss the signal, and the master wait for its graceful time-out."""
    server = gunicorn("-w", "4", VISITS_SHARDS=valkey.url).spawn()
    wait_until(lambda: "Booting worker" in server.log, "a worker boots")
    start = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - start < LONG_SECONDS


@pytest.fixture
def shard_list(tmp_path: Path, valkey: ValkeyServer) -> Path:
    path = tmp_path / "shards"
    path.write_text(f"a={valkey.url}", encoding="ascii")
    return path


@pytest.mark.parametrize("worker", WORKERS)
def test_a_reload_with_a_wrong_setting_changes_nothing_and_says_so(
    gunicorn: Make, connect: Connect, shard_list: Path, worker: str
) -> None:
    server = gunicorn("-k", worker, VISITS_SHARDS_FILE=str(shard_list)).start()
    right = shard_list.read_text(encoding="ascii")
    client = connect(server)
    assert client.ask("POST", "/visits/a").answer().status == 200
    wait_until(lambda: len(server.worker_pids) == 2, "two workers")
    workers = server.worker_pids
    shard_list.write_text("a=rediss//typo", encoding="ascii")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: "the service goes on with the old one" in server.log, "the master says so")
    assert "VISITS_SHARDS" in server.log.partition("goes on with")[2]
    assert server.worker_pids == workers
    # A worker that is started later goes on with what there is, too.
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(server.worker_pids) - set(workers)) == 1, "another worker")
    (later,) = set(server.worker_pids) - set(workers)
    os.kill(workers[1], signal.SIGSTOP)
    wait_until(lambda: b"wsgi" in Path(f"/proc/{later}/cmdline").read_bytes(), "it runs")
    assert connect(server).ask("POST", "/visits/a").answer().status == 200
    os.kill(workers[1], signal.SIGCONT)
    shard_list.write_text(right, encoding="ascii")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: not set(server.worker_pids) & {*workers, later}, "new workers after the mistake was mended")
    assert connect(server).ask("POST", "/visits/a").answer().status == 200


# Loads slowly while a file is there, but not where the new configuration is only checked.
SLOW_APP = """
import pathlib, sys, time
from wsgi import app
while pathlib.Path({hold!r}).exists() and "--check-config" not in sys.argv:
    time.sleep(0.01)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """The file that keeps `slow_to_load:app` from being loaded."""
    path = tmp_path / "hold"
    (tmp_path / "slow_to_load.py").write_text(SLOW_APP.format(hold=str(path)), encoding="utf-8")
    return path


@pytest.mark.parametrize("worker", WORKERS)
def test_a_reload_ends_the_old_workers_only_once_the_new_ones_serve(
    gunicorn: Make, connect: Connect, valkey: ValkeyServer, hold: Path, worker: str
) -> None:
    environ = {"app": "slow_to_load:app", "PYTHONPATH": str(hold.parent), "VISITS_SHARDS": valkey.url}
    server = gunicorn("-k", worker, **environ).start()
    wait_until(lambda: len(server.worker_pids) == 2, "two workers")
    old = set(server.worker_pids)
    hold.touch()
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("Booting worker") == 4, "new workers boot")
    for _ in range(4):
        client = connect(server)
        assert client.ask("POST", "/visits/a").answer().status == 200
        client.close()
    assert old < set(server.worker_pids)
    hold.unlink()
    wait_until(lambda: len(server.worker_pids) == 2 and not old & set(server.worker_pids), "the old ones end")
    assert connect(server).ask("POST", "/visits/a").answer().status == 200
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_reload_ends_the_worker_of_a_profile_of_one_process_before_the_new_one_serves(
    gunicorn: Make, hold: Path
) -> None:
    environ = {"app": "slow_to_load:app", "PYTHONPATH": str(hold.parent), "VISITS_PROFILE": "basic"}
    server = gunicorn(**environ).start()
    (old,) = server.worker_pids
    hold.touch()
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("Booting worker") == 2, "a new worker boots")
    wait_until(lambda: old not in server.worker_pids, "the old one ends meanwhile")
    hold.unlink()
    assert server.stop() == 0


def test_under_gthread_a_client_that_says_no_more_holds_its_thread_for_a_time_only(
    gunicorn: Make, connect: Connect, tmp_path: Path
) -> None:
    config = tmp_path / "gunicorn.conf.py"
    ours = Path(__file__).parents[2] / "gunicorn.conf.py"
    text = ours.read_text(encoding="utf-8").replace("__file__", repr(str(ours)))
    impatient = "from visit_counter.server import life\nlife._GTHREAD_WAIT_SECONDS = 1\n"
    config.write_text(f"{text}\n{impatient}", encoding="utf-8")
    server = gunicorn("-c", str(config), "-k", "gthread", "--threads", "2", VISITS_PROFILE="basic").start()
    silent = [connect(server).send(half) for half in (HALF, HALF[:20]) * 2]
    assert connect(server).ask("POST", "/visits/a").answer().status == 200
    assert [silent[at].answer().status for at in (0, 2)] == [400, 400]
    assert all(client.is_closed() for client in silent)
    assert server.stop() == 0
