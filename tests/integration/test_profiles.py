"""Who serves which answer, profile by profile, and what readers may rely on: the application over real shards."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.patient_app import patient_stores
from tests.support.servers import ValkeyServer, running_valkeys, wait_until
from visit_counter import create_app
from visit_counter.config.settings import Settings
from visit_counter.counting.counter import BufferedCounter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from flask.testing import FlaskClient

    from visit_counter.runtime.service import Service

CACHED_PROFILES = ("cached", "batched", "sharded")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyServer]]:
    """Two servers for all tests of this module."""
    with running_valkeys(*(tmp_path_factory.mktemp("shard") for _ in range(2))) as servers:
        yield servers


@pytest.fixture
def shards(servers: list[ValkeyServer]) -> list[ValkeyServer]:
    """Two running and empty shards."""
    for server in servers:
        if not server.runs():
            server.start()
        with server.client() as client:
            client.flushall()
    return servers


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a shard as long as a loaded machine takes."""
    monkeypatch.setattr("visit_counter.shards.factory.RedisStore", patient_stores)


@pytest.fixture
def said(request: pytest.FixtureRequest) -> Any:
    """What a table of `cases` says for a profile; `app` asks for it so that every test may have one."""
    return getattr(request, "param", ())


@pytest.fixture
def app(
    request: pytest.FixtureRequest,
    shards: list[ValkeyServer],
    tmp_path: Path,
    patience: None,  # noqa: ARG001 - for its effect
    said: tuple[str, ...],  # noqa: ARG001 - see there
) -> Iterator[Flask]:
    """The application; a test's `visits` mark gives settings without their prefix. No flush but the test's own."""
    environ = {"PROFILE": "sharded", "FLUSH_SECONDS": "3600", "CACHE_SECONDS": "3600", "DATA_DIR": str(tmp_path)}
    environ["SHARDS"] = ",".join(shard.url for shard in shards)
    if mark := request.node.get_closest_marker("visits"):
        environ |= mark.kwargs
    app = create_app(Settings.load({f"VISITS_{name}": value for name, value in environ.items()}))
    yield app
    app.extensions["visit_counter"].stop()


@pytest.fixture
def service(app: Flask) -> Service:
    """The application's service."""
    service: Service = app.extensions["visit_counter"]
    return service


def ask(client: FlaskClient, method: str, page: str) -> tuple[Any, ...]:
    """Return the status and what the answer says."""
    reply = client.open(f"/visits/{page}", method=method)
    answer = reply.get_json() or {}
    return reply.status_code, answer.get("visits"), answer.get("served_via")


def named(via: str, page: str, service: Service) -> str:
    """Return the owning shard's name where a table says `shard`."""
    if via != "shard":
        return via
    assert service.store
    return service.store.shard_name(page)


def cases(table: dict[str, tuple[str, ...]], **settings: str) -> pytest.MarkDecorator:
    """Return parameters from a table by profile, each with its settings."""
    return pytest.mark.parametrize(
        "said",
        [
            pytest.param(said, marks=pytest.mark.visits(PROFILE=name, **settings), id=name)
            for name, said in table.items()
        ],
        indirect=True,
    )


@cases(
    {
        "basic": ("in_memory", "in_memory", "in_memory"),
        "redis": ("redis", "redis", "redis"),
        "cached": ("redis", "redis", "in_memory"),
        "batched": ("batch", "redis", "in_memory"),
        "sharded": ("shard", "shard", "in_memory"),
    }
)
def test_served_via_of_a_post_of_a_first_read_and_of_a_read_from_the_cache(
    client: FlaskClient, service: Service, said: tuple[str, ...]
) -> None:
    for page in (f"page/{number}" for number in range(10)):
        post, first, cached = (named(via, page, service) for via in said)
        assert ask(client, "POST", page) == (200, 1, post)
        assert ask(client, "GET", page) == (200, 1, "in_memory" if "in_memory" in said else first)
        assert ask(client, "GET", f"new/{page}") == (200, 0, named(said[1], f"new/{page}", service))
        assert ask(client, "GET", f"new/{page}") == (200, 0, cached)


@cases(
    {
        "redis": ("redis", "redis"),
        "cached": ("redis", "redis"),
        "batched": ("batch", "redis"),
        "sharded": ("shard", "shard"),
    },
    CACHE_SECONDS="0",
)
def test_served_via_without_a_fresh_cache_before_and_after_a_flush(
    client: FlaskClient, service: Service, said: tuple[str, ...]
) -> None:
    for page in (f"page/{number}" for number in range(10)):
        pending, stored = (named(via, page, service) for via in said)
        assert ask(client, "POST", page)[:2] == (200, 1)
        assert ask(client, "GET", page) == (200, 1, pending)
        service.flush()
        if isinstance(service.counter, BufferedCounter):
            service.counter.tick()  # once a second: then a process knows what a flush has confirmed
        assert ask(client, "GET", page) == (200, 1, stored)
        assert ask(client, "POST", page)[:2] == (200, 2)
        assert ask(client, "GET", page) == (200, 2, pending)


@cases(dict.fromkeys(CACHED_PROFILES, ()))
def test_a_cached_answer_shows_own_visits_before_and_after_a_flush(client: FlaskClient, service: Service) -> None:
    for count in range(1, 6):
        assert ask(client, "POST", "own")[1] == count
        assert ask(client, "GET", "own") == (200, count, "in_memory")
        service.flush()
        assert ask(client, "GET", "own") == (200, count, "in_memory")


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("cache_seconds", ["0", "0.001", "5"])
@pytest.mark.parametrize("profile", ["redis", *CACHED_PROFILES])
def test_no_reader_sees_less_than_its_own_visit_was_answered(
    shards: list[ValkeyServer], tmp_path: Path, profile: str, cache_seconds: str
) -> None:
    """Eight visitors of one page at once, each reading after each visit; and the total is exact."""
    environ = {"PROFILE": profile, "CACHE_SECONDS": cache_seconds, "DATA_DIR": str(tmp_path), "FLUSH_SECONDS": "0.05"}
    environ["SHARDS"] = ",".join(shard.url for shard in shards)
    app = create_app(Settings.load({f"VISITS_{name}": value for name, value in environ.items()}))
    threads, visits = 8, 60
    barrier = threading.Barrier(threads)

    def visit(_: int) -> list[int]:
        client, answers = app.test_client(), []
        barrier.wait()
        for _ in range(visits):
            status, mine, _ = ask(client, "POST", "page")
            assert status == 200
            read = ask(client, "GET", "page")
            assert read[0] == 200, read
            assert read[1] >= mine, f"a visit was answered {mine}, and a read after it {read}"
            answers.append(mine)
        return answers

    try:
        with ThreadPoolExecutor(threads) as pool:
            answers = [answer for mine in pool.map(visit, range(threads)) for answer in mine]
        assert sorted(answers) == list(range(1, threads * visits + 1))
        assert ask(app.test_client(), "GET", "page")[1] == threads * visits
    finally:
        app.extensions["visit_counter"].stop()


@cases(dict.fromkeys(CACHED_PROFILES, ()))
def test_a_herd_on_a_page_whose_time_is_over_reads_the_shard_once(
    app: Flask, client: FlaskClient, service: Service, shards: list[ValkeyServer]
) -> None:
    def reads() -> int:
        total = 0
        for shard in shards:
            with shard.client() as redis:
                total += redis.info("commandstats").get("cmdstat_hmget", {}).get("calls", 0)
        return total

    ask(client, "POST", "herd")
    service.flush()
    ask(client, "GET", "herd")
    local: Any = service.counter
    if isinstance(service.counter, BufferedCounter):
        local = service.counter.stored.kept
        service.counter.stored.look = lambda: None  # type: ignore[method-assign]  # a look is an HMGET, too
    before = reads()
    local.cache.clock = lambda: time.monotonic() + 7200
    threads = 32
    barrier = threading.Barrier(threads)

    def read(_: int) -> tuple[Any, ...]:
        herd = app.test_client()
        barrier.wait()
        return ask(herd, "GET", "herd")

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(read, range(threads)))
    assert {answer[:2] for answer in answers} == {(200, 1)}
    assert reads() == before + 1


@cases({"batched": (), "sharded": ()}, PENDING_MAX_PAGES="1")
def test_a_visit_that_cannot_be_kept_is_503_and_not_counted(client: FlaskClient) -> None:
    assert ask(client, "POST", "kept")[:2] == (200, 1)
    reply = client.post("/visits/refused")
    assert reply.status_code == 503
    assert reply.content_type == "application/problem+json"
    assert reply.headers["Retry-After"] == "1"
    assert ask(client, "GET", "refused")[:2] == (200, 0)
    health = client.get("/health")
    assert (health.status_code, health.get_json()["api_status"]) == (503, "unhealthy")


@cases({"batched": (), "sharded": ()})
def test_with_a_shard_down_visits_are_accepted_and_reads_are_honest(
    client: FlaskClient, service: Service, shards: list[ValkeyServer]
) -> None:
    """What was read once is known; what never was is 503, or 202 with the pending part alone."""
    assert service.store
    page, unknown = (f"{word}/{at}" for word, at in (("known", 0), ("unknown", 0)))
    assert ask(client, "POST", page)[1] == 1
    for shard in shards:
        shard.kill()
    assert ask(client, "POST", page)[:2] == (200, 2)
    assert ask(client, "GET", page)[:2] == (200, 2)
    for pending in (1, 2):
        reply = client.post(f"/visits/{unknown}")
        assert reply.status_code == 202
        assert reply.get_json() | {"served_via": ""} == {"visits": None, "pending": pending, "served_via": ""}
    reply = client.get(f"/visits/{unknown}")
    assert reply.status_code == 503
    assert reply.content_type == "application/problem+json"
    assert reply.headers["Retry-After"] == "1"
    health = client.get("/health")
    assert (health.status_code, health.get_json()["api_status"]) == (200, "degraded")
    assert not any(health.get_json()["redis_status"].values())
    for shard in shards:
        shard.start()
    wait_until(lambda: client.get("/health").get_json()["api_status"] == "healthy", "the shards are seen")
    wait_until(lambda: ask(client, "GET", unknown)[:2] == (200, 2), "the page is read")
    service.flush()
    assert [ask(client, "GET", name)[1] for name in (page, unknown)] == [2, 2]


@cases({"redis": (), "cached": ()})
def test_a_profile_without_a_journal_refuses_visits_while_its_shard_is_down(
    client: FlaskClient, shards: list[ValkeyServer]
) -> None:
    assert ask(client, "POST", "page")[1] == 1
    shards[0].kill()
    for method in ("POST", "GET"):
        reply = client.open("/visits/other", method=method)
        assert reply.status_code == 503
        assert reply.content_type == "application/problem+json"
        assert "Retry-After" in reply.headers
    health = client.get("/health")
    assert (health.status_code, health.get_json()["api_status"]) == (503, "unhealthy")


@pytest.mark.visits(PROFILE="basic")
def test_a_bug_is_500_without_its_traceback(
    client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.counter, "answer", broken)
    reply = client.post("/visits/a")
    assert reply.status_code == 500
    assert reply.content_type == "application/problem+json"
    assert b"secret" not in reply.data
    assert "secret detail" in caplog.text
