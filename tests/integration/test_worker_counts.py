"""The worker with the real service and real shards: every visit counted once, and nobody waits for another's shard."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support import processes
from tests.support.http_client import Client
from tests.support.servers import GunicornServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKER = ("-w", "1", "-k", "visit_counter.server.worker.VisitWorker")
Shards = tuple[ValkeyServer, ValkeyServer]


def connect(server: GunicornServer) -> Client:
    return Client(socket.create_connection(("127.0.0.1", server.port)))


def start(gunicorn: Callable[..., GunicornServer], shards: Shards, cache_seconds: str) -> GunicornServer:
    urls = ",".join(f"{name}={shard.url}" for name, shard in zip("ab", shards, strict=True))
    environ = {"VISITS_SHARDS": urls, "VISITS_CACHE_SECONDS": cache_seconds, "VISITS_FLUSH_SECONDS": "1"}
    return gunicorn(*WORKER, **environ).start()


def test_every_visit_gets_a_number_of_its_own_while_cached_counts_grow_old_and_flushes_run(
    gunicorn: Callable[..., GunicornServer], two_valkeys: Shards
) -> None:
    server = start(gunicorn, two_valkeys, "0.05")
    pages = [f"page/{number}" for number in range(5)]
    given: dict[str, list[int]] = {page: [] for page in pages}
    barrier = threading.Barrier(8)

    def visit() -> None:
        client = connect(server)
        barrier.wait()
        for turn in range(1000):
            page = pages[turn % len(pages)]
            given[page].append(json.loads(client.ask("POST", f"/visits/{page}").answer().body)["visits"])
        client.close()

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    for page in pages:
        assert sorted(given[page]) == list(range(1, 1601))


@pytest.mark.parametrize(("method", "counts"), [("POST", range(1, 17)), ("GET", [0] * 16)])
def test_a_herd_on_one_unknown_page_reads_it_once_and_is_told_from_where(
    gunicorn: Callable[..., GunicornServer], two_valkeys: Shards, method: str, counts: Sequence[int]
) -> None:
    server = start(gunicorn, two_valkeys, "3600")
    (pid,) = server.worker_pids
    herd = [connect(server) for _ in range(16)]
    for client in herd:  # accepted, and known to the loop
        client.ask("GET", "/visits/other").answer()
    before = reads(two_valkeys)
    with processes.stopped(pid):
        for client in herd:
            client.ask(method, "/visits/herd")
    answers = [json.loads(client.answer().body) for client in herd]
    assert sorted(answer["visits"] for answer in answers) == list(counts)
    assert {answer["served_via"] for answer in answers} in ({"a"}, {"b"})
    assert reads(two_valkeys) == before + 1
    for client in herd:
        client.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_cache_a_request_reads_its_page_once(
    gunicorn: Callable[..., GunicornServer], two_valkeys: Shards, method: str
) -> None:
    server = start(gunicorn, two_valkeys, "0")
    client = connect(server)
    before = reads(two_valkeys)
    for number in range(5):
        assert client.ask(method, f"/visits/new/{number}").answer().status == 200
    assert reads(two_valkeys) == before + 5
    client.close()


def reads(shards: Shards) -> int:
    """Return how many pages the shards were asked for."""
    total = 0
    for shard in shards:
        with shard.client() as client:
            total += client.info("commandstats").get("cmdstat_hmget", {}).get("calls", 0)
    return total


def test_nobody_waits_for_a_shard_that_does_not_answer_but_who_asks_it(
    gunicorn: Callable[..., GunicornServer], two_valkeys: Shards
) -> None:
    server = start(gunicorn, two_valkeys, "3600")
    known, unknown = connect(server), [connect(server) for _ in range(8)]
    assert known.ask("POST", "/visits/known").answer().status == 200
    for shard in two_valkeys:
        shard.freeze()
    try:
        for number, client in enumerate(unknown):
            client.ask("POST", f"/visits/unknown/{number}")
        for expected in range(2, 102):
            assert json.loads(known.ask("POST", "/visits/known").answer().body)["visits"] == expected
        # Their stored part is not known: the visit is accepted, and the number is what this host has of it.
        assert [client.answer().status for client in unknown] == [202] * 8
    finally:
        for shard in two_valkeys:
            shard.thaw()
    for client in [known, *unknown]:
        client.close()
