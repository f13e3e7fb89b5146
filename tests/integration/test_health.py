"""/health, /live and /ready: what happened to visits and flushes, over real shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from tests.support.servers import ValkeyServer, running_valkeys, wait_until
from visit_counter import create_app
from visit_counter.config.settings import Settings
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.runtime.service import Service
from visit_counter.shards.redis.replicas import Replica
from visit_counter.shards.ring import Ring, partition_of

NAMES = ("one", "two")
RING = Ring(NAMES)
# Two pages of each shard.
PAGES = {name: [p for p in map(str, range(50)) if RING.shard_of(partition_of(p)) == name][:2] for name in NAMES}


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[ValkeyServer]]:
    with running_valkeys(*(tmp_path / name for name in NAMES)) as found:
        yield found


@pytest.fixture
def application(shards: list[ValkeyServer], settings: Callable[..., Settings]) -> Iterator[Flask]:
    """The application; nothing is flushed but by a test. Not `app`, for which pytest-flask makes a context."""
    urls = ",".join(f"{name}={shard.url}" for name, shard in zip(NAMES, shards, strict=True))
    app = create_app(settings(VISITS_SHARDS=urls, VISITS_FLUSH_SECONDS="3600"))
    yield app
    app.extensions["visit_counter"].stop()


@pytest.fixture
def client(application: Flask) -> FlaskClient:
    return application.test_client()


@pytest.fixture
def service(application: Flask) -> Service:
    service: Service = application.extensions["visit_counter"]
    return service


def health(client: FlaskClient) -> dict[str, Any]:
    reply = client.get("/health")
    assert reply.status_code == (503 if reply.get_json()["api_status"] == "unhealthy" else 200)
    body: dict[str, Any] = reply.get_json()
    return body


def command(service: Service, *arguments: str) -> Result:
    """Run a flask command, as from another process: it closes the service that it has used."""
    return create_app(service.settings).test_cli_runner().invoke(args=arguments)


def visit_all(client: FlaskClient) -> None:
    for page in (*PAGES["one"], *PAGES["two"]):
        assert client.post(f"/visits/{page}").status_code == 200


def fill(server: Any) -> Callable[[], object]:
    server.execute_command("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.execute_command("CONFIG", "SET", "maxmemory", "0")


def make_replica(server: Any) -> Callable[[], object]:
    # Of nobody: it goes on with what it has, and refuses to be written to.
    server.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.execute_command("REPLICAOF", "NO", "ONE")


def take_right(server: Any) -> Callable[[], object]:
    server.execute_command("ACL", "SETUSER", "default", "-evalsha")
    return lambda: server.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(fill, "maxmemory"), (make_replica, "read only replica"), (take_right, "permission")],
    ids=["full", "replica", "right"],
)
def test_a_shard_that_refuses_what_a_flush_brings_is_told_everywhere_until_it_takes_it(
    application: Flask, service: Service, shards: list[ValkeyServer], spoil: Callable[..., Any], said: str
) -> None:
    client = application.test_client()
    visit_all(client)
    service.flush()
    assert health(client)["api_status"] == "healthy"
    with shards[0].client() as server:
        mend = spoil(server)
        visit_all(client)
        # A day ago, to tell the last complete flush from the last one.
        assert service.flusher
        path = service.flusher.journal.state_path
        state = Checkpoint.load(path)
        state.complete_at -= 86_400
        state.save(path)
        service.flush()
        found = health(client)
        assert found["api_status"] == "degraded"
        assert found["redis_status"] == {"one": True, "two": True}
        assert "the last flush failed: one: " in found["reason"]
        assert said in found["reason"]
        assert "two" not in found["reason"]
        assert found["last_flush_age_seconds"] >= 86_400
        rows = json.loads(command(service, "shards", "status", "--json").stdout)
        assert [row["safe"] for row in rows] == [False, True]
        assert said in str(rows[0]["warnings"])
        assert said in command(service, "shards", "rebalance", "--dry-run").stderr
        mend()
    service.flush()
    assert [service.counter.count(page).visits for pages in PAGES.values() for page in pages] == [2] * 4
    assert (health(client)["api_status"], health(client)["last_flush_age_seconds"] < 60) == ("healthy", True)
    assert "reason" not in health(client)


def test_damage_degrades_until_a_person_has_acknowledged_it_and_new_damage_degrades_again(
    client: FlaskClient, service: Service
) -> None:
    service.start_once()
    assert service.flusher
    path = service.flusher.journal.state_path

    def find(text: str) -> None:
        state = Checkpoint.load(path)
        state.note_damage(text)
        state.save(path)

    find("something is strange")
    [note] = health(client)["damage"]
    assert health(client)["api_status"] == "degraded"
    assert "acknowledged 2" in command(service, "visits", "journal", "--acknowledge").output
    assert (health(client)["api_status"], health(client)["damage"]) == ("healthy", [])
    assert note in command(service, "visits", "journal").output
    assert note in Checkpoint.load(path).damage
    find("something else is strange")
    assert health(client)["api_status"] == "degraded"
    assert [text.partition(" ")[2] for text in health(client)["damage"]] == ["something else is strange"]


def test_ready_says_whether_visits_are_accepted_and_live_that_the_process_answers(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (client.get("/live").status_code, client.get("/ready").get_json()) == (200, {"ready": True})
    monkeypatch.setattr(WriteBuffer, "refusal", lambda _self: "the disk is gone")
    reply = client.get("/ready")
    assert (reply.status_code, reply.get_json()) == (503, {"ready": False, "reason": "the disk is gone"})
    assert reply.headers["Cache-Control"] == "no-store"
    assert client.get("/live").get_json() == {"live": True}
    found = health(client)
    assert (found["api_status"], found["reason"]) == ("unhealthy", "the disk is gone")


@pytest.mark.parametrize("profile", ["basic", "redis", "cached"])
def test_without_a_journal_nothing_is_told_of_one(
    settings: Callable[..., Settings], shards: list[ValkeyServer], profile: str
) -> None:
    app = create_app(settings(VISITS_PROFILE=profile, VISITS_SHARDS=f"one={shards[0].url}"))
    client = app.test_client()
    assert health(client).keys() == {"api_status", "redis_status", "profile"}
    assert client.get("/ready").status_code == 200
    shards[0].kill()
    if profile != "basic":
        wait_until(lambda: client.get("/ready").status_code == 503, "the shard is missed")
        assert health(client)["api_status"] == "unhealthy"
        assert "one does not answer" in health(client)["reason"]
    app.extensions["visit_counter"].stop()


def test_the_person_who_acknowledges_may_have_no_name(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    def unknown() -> str:
        raise KeyError

    monkeypatch.setattr("visit_counter.cli.reports.getpass.getuser", unknown)
    service.start_once()
    assert service.flusher
    state = Checkpoint()
    state.note_damage("x")
    state.save(service.flusher.journal.state_path)
    assert f"by user {os.getuid()}" in command(service, "visits", "journal", "--acknowledge").output


def test_a_replica_that_is_away_is_told_until_a_person_gives_it_up(client: FlaskClient, service: Service) -> None:
    service.start_once()
    assert service.flusher
    state = Checkpoint()
    state.replicas = {"one": {"10.0.0.2:7070": Replica("", 50.0), "10.0.0.3:7070": Replica("")}}
    state.save(service.flusher.journal.state_path)
    assert "one: its replica 10.0.0.2:7070 has been away for" in health(client)["reason"]
    rows = json.loads(command(service, "shards", "status", "--json").stdout)
    assert [row["safe"] for row in rows] == [False, True]
    rows = json.loads(command(service, "shards", "replicas", "--json").stdout)
    assert [(row["replica"], row["away_seconds"] is None, row["given_up"]) for row in rows] == [
        ("10.0.0.2:7070", False, False),
        ("10.0.0.3:7070", True, False),
    ]
    assert command(service, "shards", "replicas", "--forget", "10.0.0.9:7070").exit_code == 1
    assert "yes" in command(service, "shards", "replicas", "--forget", "10.0.0.2:7070").stdout
    assert health(client)["api_status"] == "healthy"


@pytest.mark.parametrize("profile", ["redis", "cached"])
def test_without_a_journal_a_shard_that_refuses_the_last_visit_is_unhealthy_until_it_takes_it(
    settings: Callable[..., Settings], shards: list[ValkeyServer], profile: str
) -> None:
    application = create_app(settings(VISITS_PROFILE=profile, VISITS_SHARDS=f"one={shards[0].url}"))
    client = application.test_client()
    assert client.post("/visits/a").status_code == 200
    with shards[0].client() as server:
        mend = fill(server)
        assert client.post("/visits/a").status_code == 503
        assert client.get("/ready").status_code == 503
        assert health(client)["api_status"] == "unhealthy"
        assert "maxmemory" in health(client)["reason"]
        mend()
    # Nobody has to visit for that: a balancer that sends no visits would wait for ever.
    assert (health(client)["api_status"], client.get("/ready").status_code) == ("healthy", 200)
    assert client.get("/visits/a").get_json()["visits"] == 1
    application.extensions["visit_counter"].stop()


def test_a_server_that_is_another_shard_degrades_and_says_so(
    client: FlaskClient, service: Service, shards: list[ValkeyServer]
) -> None:
    assert client.post(f"/visits/{PAGES['one'][0]}").status_code == 200
    assert service.store is not None
    service.store.refresh_shard_map()
    assert health(client)["api_status"] == "healthy"
    with shards[0].client() as one, shards[1].client() as two:
        one.set("visits:{0}:shard", two.get("visits:{0}:shard"))
    service.store.refresh_shard_map()
    found = health(client)
    assert found["api_status"] == "degraded"
    assert found["redis_status"] == {"one": False, "two": True}
    assert "is not this shard: it says it is the shard two" in found["reason"]
