"""Guards in a running service: the worker's loop, Flask, several workers, and a real proxy before them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.http_client import Client, Reply
from tests.support.ports import free_port, listening
from tests.support.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.servers import GunicornServer, ValkeyServer

WORKERS = ("gthread", "visit_counter.server.worker.VisitWorker")
OTHER = "X-Forwarded-For: 192.0.2.9"


@pytest.fixture
def connect() -> Iterator[Callable[[int], Client]]:
    """Connect to a port; the connections end with the test."""
    clients: list[Client] = []

    def connection(port: int) -> Client:
        clients.append(Client(socket.create_connection(("127.0.0.1", port))))
        return clients[-1]

    yield connection
    for client in clients:
        client.close()


def body(reply: Reply) -> dict[str, object]:
    return json.loads(reply.body)  # type: ignore[no-any-return]


@pytest.mark.parametrize("worker", WORKERS)
def test_a_client_beyond_its_limit_is_told_when_to_come_again_and_counts_nothing(
    gunicorn: Callable[..., GunicornServer], connect: Callable[[int], Client], worker: str
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_RATE_LIMIT": "3/hour"}
    client = connect(gunicorn("-w", "1", "-k", worker, **environ).start().port)
    assert [body(client.ask("POST", "/visits/a").answer())["visits"] for _ in range(3)] == [1, 2, 3]
    for method, path in (("POST", "/visits/a"), ("GET", "/pixel/a.gif"), ("GET", "/badge/a.svg?hit=1")):
        refused = client.ask(method, path).answer()
        assert (refused.status, refused.fields["retry-after"]) == (429, "1200"), path
        assert refused.fields["access-control-allow-origin"] == "*"
        assert "VISITS_RATE_LIMIT" in str(body(refused)["detail"])
    assert body(client.ask("GET", "/visits/a").answer())["visits"] == 3
    assert body(client.ask("POST", "/visits/a", OTHER).answer())["visits"] == 4
    assert body(client.ask("GET", "/health").answer())["ignored"] == {"rate": 3}


@pytest.mark.parametrize("worker", WORKERS)
def test_a_repeat_and_an_own_visit_are_answered_and_not_counted(
    gunicorn: Callable[..., GunicornServer], connect: Callable[[int], Client], worker: str
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_REPEAT_SECONDS": "3600", "VISITS_IGNORE_ADDRESSES": "192.0.2.9"}
    client = connect(gunicorn("-w", "1", "-k", worker, **environ).start().port)
    assert body(client.ask("POST", "/visits/a").answer())["visits"] == 1
    repeat = client.ask("POST", "/visits/a").answer()
    assert (repeat.status, body(repeat)["visits"], body(repeat)["ignored"]) == (200, 1, "repeat")
    own = client.ask("POST", "/visits/a", OTHER).answer()
    assert (own.status, body(own)["visits"], body(own)["ignored"]) == (200, 1, "own")
    assert client.ask("GET", "/pixel/a.gif").answer().status == 200
    assert b"visits: 1" in client.ask("GET", "/badge/a.svg?hit=1").answer().body
    assert body(client.ask("GET", "/visits/a").answer())["visits"] == 1


def test_all_workers_of_a_host_count_as_one(
    gunicorn: Callable[..., GunicornServer], connect: Callable[[int], Client], valkey: ValkeyServer
) -> None:
    environ = {"VISITS_SHARDS": valkey.url, "VISITS_RATE_LIMIT": "10/hour"}
    server = gunicorn("-w", "2", **environ).start()
    clients = [connect(server.port) for _ in range(4)]  # idle workers take connections in turn
    statuses = [client.ask("POST", "/visits/a").answer().status for _ in range(5) for client in clients]
    assert (statuses.count(200), statuses.count(429)) == (10, 10)


NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{mine};
    location / {{
      proxy_pass http://127.0.0.1:{port};
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
}}
:{mine} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{port}
}}
"""


@pytest.fixture
def proxied(
    tmp_path: Path, connect: Callable[[int], Client], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, int], Client]]:
    """Start a proxy, by its name, before a port of a service, and connect to it; skipped where it is not installed."""
    started: list[subprocess.Popen[bytes]] = []
    for kind in ("DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path))

    def start(name: str, port: int) -> Client:
        program = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        if program is None:
            pytest.skip(f"no {name} is installed")
        mine, config = free_port(), tmp_path / name
        text = NGINX if name == "nginx" else CADDY
        config.write_text(text.format(folder=tmp_path, mine=mine, port=port), encoding="ascii")
        command = (
            ["-p", str(tmp_path), "-c", str(config)]
            if name == "nginx"
            else ["run", "--config", str(config), "--adapter", "caddyfile"]
        )
        started.append(subprocess.Popen([program, *command]))
        wait_until(lambda: listening(mine) or started[-1].poll() is not None, f"{name} listens")
        assert started[-1].poll() is None, f"{name} has ended"
        return connect(mine)

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_behind_a_proxy_that_is_not_trusted_it_is_the_client_whatever_it_says(
    gunicorn: Callable[..., GunicornServer], proxied: Callable[[str, int], Client], proxy: str
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_RATE_LIMIT": "2/hour", "VISITS_TRUSTED_PROXIES": "127.0.0.2"}
    client = proxied(proxy, gunicorn("-w", "1", **environ).start().port)
    statuses = [client.ask("POST", "/visits/a", f"X-Forwarded-For: 192.0.2.{n}").answer().status for n in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert "VISITS_TRUSTED_PROXIES" in str(body(client.ask("GET", "/why?page=a").answer())["hint"])


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_behind_a_trusted_proxy_who_has_connected_to_it_is_the_client(
    gunicorn: Callable[..., GunicornServer], proxied: Callable[[str, int], Client], proxy: str
) -> None:
    environ = {"VISITS_PROFILE": "basic", "VISITS_IGNORE_ADDRESSES": "127.0.0.1", "VISITS_TRUSTED_PROXIES": "127.0.0.1"}
    client = proxied(proxy, gunicorn("-w", "1", **environ).start().port)
    assert body(client.ask("POST", "/visits/a").answer())["ignored"] == "own"
    assert body(client.ask("GET", "/why?page=a").answer())["client"] == "127.0.0.1"


def test_what_a_client_forges_stands_before_what_nginx_appends_and_caddy_drops_it(
    gunicorn: Callable[..., GunicornServer], proxied: Callable[[str, int], Client]
) -> None:
    """We are a trusted proxy too, so nginx hands on what we say; Caddy believes nobody until it is told to."""
    environ = {"VISITS_PROFILE": "basic", "VISITS_TRUSTED_PROXIES": "127.0.0.1"}
    port = gunicorn("-w", "1", **environ).start().port
    for proxy, client in (("nginx", "192.0.2.9"), ("caddy", "127.0.0.1")):
        answer = proxied(proxy, port).ask("GET", "/why?page=a", "X-Forwarded-For: 198.51.100.1, 192.0.2.9").answer()
        assert body(answer)["client"] == client, proxy
