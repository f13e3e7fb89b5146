"""CORS from a running service: its loop and Flask say the same, and a list of origins holds in both."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.http_client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import GunicornServer

pytestmark = pytest.mark.quick

ALLOW = "access-control-allow-origin"
OURS, OTHERS = "Origin: https://blog.example.org", "Origin: https://copy.example.net"
WORKERS = ("gthread", "visit_counter.server.worker.VisitWorker")


@pytest.fixture(params=WORKERS)
def connect(request: pytest.FixtureRequest, gunicorn: Callable[..., GunicornServer]) -> Iterator[Callable[..., Client]]:
    """Start a service and return a connection to it, for each class of workers."""
    clients = []

    def start(**environ: str) -> Client:
        server = gunicorn("-w", "1", "-k", request.param, VISITS_PROFILE="basic", **environ).start()
        clients.append(Client(socket.create_connection(("127.0.0.1", server.port))))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_every_origin_counts_and_reads(connect: Callable[..., Client]) -> None:
    client = connect()
    for path in ("/visits/a", "/visits/a", "/visits/a%00", "/nothing"):
        assert client.ask("POST", path, OTHERS).answer().fields[ALLOW] == "*"
    assert json.loads(client.ask("GET", "/visits/a").answer().body)["visits"] == 2


def test_with_a_list_only_its_origins_count_and_read(connect: Callable[..., Client]) -> None:
    client = connect(VISITS_ORIGINS="https://*.example.org")
    plain = client.ask("POST", "/visits/a").answer()
    assert (plain.status, plain.fields.get(ALLOW), plain.fields["vary"]) == (200, None, "Origin")
    ours = client.ask("POST", "/visits/a", OURS).answer()
    assert (ours.status, ours.fields[ALLOW], ours.fields["vary"]) == (200, OURS.partition(" ")[2], "Origin")
    others = client.ask("POST", "/visits/a", OTHERS).answer()
    assert (others.status, others.fields.get(ALLOW), others.fields["vary"]) == (403, None, "Origin")
    assert json.loads(client.ask("GET", "/visits/a", OURS).answer().body)["visits"] == 2
