"""The whole service from start to end: counts stay, every worker counts every visit, a wrong start is one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.http_client import Client
from tests.support.ports import free_ports, listening
from tests.support.servers import GunicornServer, ValkeyServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[..., GunicornServer]

PAGES = [f"page/{number}" for number in range(8)]


@contextmanager
def connected(server: GunicornServer) -> Iterator[Client]:
    """Give one connection, served by one worker from its first request on."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        yield Client(connection)


def visits(client: Client, method: str, page: str) -> int:
    """Return the count that an answer of 200 gives."""
    reply = client.ask(method, f"/visits/{page}").answer()
    assert reply.status == 200, reply
    return int(json.loads(reply.body)["visits"])


def counts(server: GunicornServer) -> list[int]:
    """Return the counts of all pages."""
    with connected(server) as client:
        return [visits(client, "GET", page) for page in PAGES]


def visit_all(server: GunicornServer) -> list[int]:
    """Visit every page once; return the new counts."""
    with connected(server) as client:
        return [visits(client, "POST", page) for page in PAGES]


@pytest.fixture
def embedded(gunicorn: Make) -> Callable[[str], GunicornServer]:
    """Make a service of a profile with embedded shards."""
    ports = ",".join(map(str, free_ports(2)))
    environ = {"app": "tests.support.patient_app:patient_app()", "VISITS_EMBEDDED_PORTS": ports}
    return lambda profile, *arguments: gunicorn(*arguments, VISITS_PROFILE=profile, **environ)


@pytest.mark.parametrize("profile", ["redis", "cached", "batched", "sharded"])
def test_counts_outlive_ctrl_c_and_kill_9(embedded: Callable[[str], GunicornServer], profile: str) -> None:
    server = embedded(profile).start()
    assert visit_all(server) == [1] * len(PAGES)
    assert server.interrupt() == 0
    assert "Traceback" not in server.log
    server.start()
    assert counts(server) == [1] * len(PAGES)
    assert visit_all(server) == [2] * len(PAGES)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not listening(server.port), "the workers of the killed master are gone")
    server.start()
    assert counts(server) == [2] * len(PAGES)


def test_the_basic_profile_begins_anew(gunicorn: Make) -> None:
    server = gunicorn(VISITS_PROFILE="basic").start()
    assert visit_all(server) == [1] * len(PAGES)
    assert server.interrupt() == 0
    assert counts(server.start()) == [0] * len(PAGES)


@pytest.mark.parametrize("profile", ["redis", "batched", "sharded"])
def test_every_worker_counts_a_visit_that_another_has_answered(
    gunicorn: Make, two_valkeys: tuple[ValkeyServer, ValkeyServer], profile: str
) -> None:
    urls = ",".join(shard.url for shard in two_valkeys)
    environ = {"VISITS_PROFILE": profile, "VISITS_SHARDS": urls, "VISITS_FLUSH_SECONDS": "0.2"}
    server = gunicorn("-w", "4", app="tests.support.patient_app:patient_app()", **environ).start()
    wait_until(lambda: len(server.worker_pids) == 4, "four workers")
    workers = server.worker_pids
    clients: list[Client] = []
    for worker in workers:
        # While the others rest, this one takes the connection, and keeps it.
        others = [pid for pid in workers if pid != worker]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        clients.append(Client(socket.create_connection(("127.0.0.1", server.port))))
        visits(clients[-1], "GET", "page")
        for other in others:
            os.kill(other, signal.SIGCONT)
    for count in range(1, 101):
        assert visits(clients[count % 4], "POST", "page") == count
        assert [visits(client, "GET", "page") for client in clients] == [count] * 4
    for client in clients:
        client.close()


def test_a_reload_and_a_killed_worker_lose_and_double_nothing(
    gunicorn: Make, two_valkeys: tuple[ValkeyServer, ValkeyServer]
) -> None:
    """A client that repeats only what was certainly not sent counts to the exact total, through both."""
    urls = ",".join(shard.url for shard in two_valkeys)
    environ = {"app": "tests.support.patient_app:patient_app()", "VISITS_SHARDS": urls, "VISITS_FLUSH_SECONDS": "0.2"}
    server = gunicorn(**environ).start()
    answered = unknown = 0
    done = threading.Event()

    def load() -> None:
        nonlocal answered, unknown
        while not done.is_set():
            try:
                with connected(server) as client:
                    visits(client, "POST", "page")
                    answered += 1
            except OSError:
                unknown += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: answered > 50, "visits before the reload")
        old = server.worker_pids
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: not set(old) & set(server.worker_pids) and server.worker_pids, "new workers")
        at = answered
        wait_until(lambda: answered > at + 50, "visits after the reload")
        killed = server.worker_pids[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in server.worker_pids and len(server.worker_pids) == 2, "another worker")
        at = answered
        wait_until(lambda: answered > at + 50, "visits after the kill")
    finally:
        done.set()
        thread.join()
    with connected(server) as client:
        assert answered <= visits(client, "GET", "page") <= answered + unknown


@pytest.mark.parametrize(
    "arguments", [("--preload",), ("-k", "sync"), ("-k", "gthread", "--threads", "8")], ids=" ".join
)
def test_gunicorns_own_options_count_too(embedded: Callable[..., GunicornServer], arguments: tuple[str, ...]) -> None:
    server = embedded("sharded", *arguments).start()
    assert visit_all(server) == [1] * len(PAGES)
    assert server.interrupt() == 0
    assert counts(server.start()) == [1] * len(PAGES)


def test_a_second_start_on_the_same_port_is_one_line_and_leaves_the_first_alone(gunicorn: Make) -> None:
    first = gunicorn(VISITS_PROFILE="basic").start()
    second = gunicorn(port=first.port, VISITS_PROFILE="basic").spawn()
    assert second.wait() == 1
    (line,) = [line for line in second.log.splitlines() if not line.startswith("[")]
    assert line.startswith(f"visit-counter: the address 127.0.0.1:{first.port} is in use by something else; choose")
    assert visit_all(first) == [1] * len(PAGES)


@pytest.mark.parametrize("target", ["wsgi:app", "visit_counter:create_app()"])
def test_wrong_settings_stop_gunicorn_with_every_mistake(gunicorn: Make, target: str) -> None:
    server = gunicorn(app=target, VISITS_PROFILE="big", VISITS_CACHE_SECONDS="5s", VISITS_FLUSH="1").spawn()
    assert server.wait() != 0
    assert server.log.startswith("visit-counter: wrong settings:\n")
    for name in ("VISITS_PROFILE is 'big'", "VISITS_CACHE_SECONDS is '5s'", "VISITS_FLUSH is not a setting"):
        assert name in server.log
    assert "Traceback" not in server.log
