"""A flush of many pages, which runs in a process of its own."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import GunicornServer, ValkeyServer

PAGES = 600  # more than the service flushes in one of its own threads


def test_a_flush_of_many_pages_brings_each_visit_into_its_shard_once(
    gunicorn: Callable[..., GunicornServer], two_valkeys: tuple[ValkeyServer, ValkeyServer]
) -> None:
    shards = ",".join(valkey.url for valkey in two_valkeys)
    service = gunicorn("-w", "1", VISITS_SHARDS=shards, VISITS_FLUSH_SECONDS="5").start()
    connection = http.client.HTTPConnection("127.0.0.1", service.port)

    def ask(method: str, path: str) -> dict[str, object]:
        connection.request(method, path)
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        return answer

    for number in range(PAGES):
        ask("POST", f"/visits/page/{number}")
    wait_until(lambda: ask("GET", "/health")["pending_visits"] == 0, "all visits are flushed")
    assert "[flush] INFO" in service.log
    stored: dict[str, int] = {}
    for valkey in two_valkeys:
        with valkey.client() as client:
            for key in client.scan_iter("visits:{*}", count=5000):
                stored |= {page: int(visits) for page, visits in client.hgetall(key).items() if page[0] != "\t"}
    assert stored == {f"page/{number}": 1 for number in range(PAGES)}
    connection.close()
