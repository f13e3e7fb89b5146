"""The shards know who they are: a wrong address is found out before a page is read there, or a visit counted."""

from __future__ import annotations

from contextlib import ExitStack, closing
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.faults.rebalancing import plan, rebalance
from tests.integration.test_rebalance import flask
from tests.support.proxy import Proxy
from tests.support.redis_servers import Server
from tests.support.servers import wait_until
from visit_counter.config.settings import Settings, Shard
from visit_counter.errors import RebalanceError, StartupError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.server.shard_checks import tell_of_other_shards
from visit_counter.shards.contract import Batch, Stored
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import Ring, partition_of
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Opened = Callable[[Sequence[Shard]], ShardedStore]

pytestmark = pytest.mark.quick

PAGES = [f"page/{number}" for number in range(400)]
KEY = "visits:{0}:shard"
OF_A = next(page for page in PAGES if Ring("ab").shard_of(partition_of(page)) == "a")
OF_B = next(page for page in PAGES if Ring("ab").shard_of(partition_of(page)) == "b")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Server(tmp_path_factory.mktemp(name)))) for name in "ab"]


@pytest.fixture
def shards(servers: list[Server]) -> list[Shard]:
    """Two shards, empty."""
    for server in servers:
        server.call("FLUSHALL")
    return listed(servers, "a", "b")


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Make a store of a host with this list."""
    with ExitStack() as stack:

        def make(shards: Sequence[Shard]) -> ShardedStore:
            stores = [RedisStore(shard, connect_seconds=5, read_seconds=5) for shard in shards]
            return stack.enter_context(closing(ShardedStore(stores, shared=True)))

        yield make


def listed(servers: Sequence[Server], *names: str) -> list[Shard]:
    """Return the servers under these names."""
    return [Shard(name, server.shard.url) for name, server in zip(names, servers, strict=True)]


def fill(store: ShardedStore) -> list[Stored]:
    """Count each page once; return what is stored then."""
    visits: dict[int, dict[str, int]] = {}
    for page in PAGES:
        visits.setdefault(partition_of(page), {})[page] = 1
    applied = store.apply("writer", [Batch(partition, "", "1:a", Tally(pages)) for partition, pages in visits.items()])
    assert {result.error for result in applied} == {None}
    return store.read("writer", PAGES)


def names_of(servers: Sequence[Server]) -> list[str]:
    """Return what the servers say they are called."""
    return [str(server.call("GET", KEY)).partition(" ")[2] for server in servers]


def start(folder: Path, shards: Sequence[Shard]) -> None:
    """Do what the start does once the shards answer."""
    text = ",".join(f"{shard.name}={shard.url}" for shard in shards)
    tell_of_other_shards(Settings.load({"VISITS_SHARDS": text, "VISITS_DATA_DIR": str(folder)}))


def test_each_shard_is_given_its_name_at_the_first_use(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path
) -> None:
    fill(opened(shards))
    assert names_of(servers) == ["a", "b"]
    start(tmp_path, shards)


@pytest.mark.parametrize("upgraded", [False, True])
def test_swapped_addresses_are_refused_before_anything_is_read_or_written(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path, upgraded: bool
) -> None:
    stored = fill(opened(shards))
    if upgraded:
        # As a version left them that did not write names.
        for server in servers:
            server.call("DEL", KEY)
    swapped = listed(servers[::-1], "a", "b")
    with pytest.raises(StartupError, match=r"is not this shard: .* see VISITS_SHARDS"):
        start(tmp_path, swapped)
    host = opened(swapped)
    for call in (lambda: host.read("writer", [OF_A]), lambda: host.add(OF_B, 1)):
        with pytest.raises(StoreUnavailableError, match="is not this shard"):
            call()
    (applied,) = host.apply("writer", [Batch(partition_of(OF_A), "1:a", "2:a", Tally({OF_A: 1}))])
    assert applied.error is not None
    assert host.ping_each() == {"a": False, "b": False}
    assert host.reasons().keys() == {"a", "b"}
    with pytest.raises(RebalanceError, match="see VISITS_SHARDS"):
        plan(swapped)
    said = flask(tmp_path, swapped, "status", status=1)
    assert "down: a, " in said
    assert "down: b, " in said
    assert "see VISITS_SHARDS" in flask(tmp_path, swapped, "rebalance", status=1)
    assert opened(shards).read("writer", PAGES) == stored


def test_shards_of_the_version_before_are_given_their_names(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    stored = fill(opened(shards))
    for server in servers:
        server.call("DEL", KEY)
    assert opened(shards).read("writer", PAGES) == stored
    assert names_of(servers) == ["a", "b"]


def test_a_server_that_is_replaced_by_another_shards_while_the_service_runs_is_down(
    servers: list[Server], opened: Opened
) -> None:
    for server in servers:
        server.call("FLUSHALL")
    proxy = Proxy(servers[0].port, Random(1))
    with closing(proxy):
        host = opened([Shard("a", f"redis://127.0.0.1:{proxy.port}"), *listed(servers[1:], "b")])
        stored = fill(host)
        proxy.lead_to(servers[1].port)
        for call in (lambda: host.read("writer", [OF_A]), lambda: host.watermarks("writer", [partition_of(OF_A)])):
            with pytest.raises(StoreUnavailableError, match="the server says it is the shard b"):
                call()
        assert host.read("writer", [OF_B]) == [Stored(1, "1:a")]
        host.refresh_shard_map()
        assert "says it is the shard b" in host.reasons()["a"]
        assert host.ping_each() == {"a": False, "b": True}
        proxy.lead_to(servers[0].port)
        host.refresh_shard_map()
        wait_until(lambda: host.ping_each() == {"a": True, "b": True}, "the right server to be taken back")
        assert host.read("writer", PAGES) == stored


def test_a_backup_restored_into_another_shards_server_is_refused(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path
) -> None:
    fill(opened(shards))
    servers[0].call("SET", KEY, str(servers[1].call("GET", KEY)))
    with pytest.raises(StartupError, match=r"a: .*it says it is the shard b"):
        start(tmp_path, shards)
    assert opened(shards).read("writer", [OF_B]) == [Stored(1, "1:a")]


def test_a_shard_of_another_installation_is_refused_by_its_name_alone(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path
) -> None:
    fill(opened(shards))
    servers[0].call("DEL", "visits:{0}:topology")
    servers[0].call("SET", KEY, "0000 a")
    with pytest.raises(StartupError, match="of another installation"):
        start(tmp_path, shards)


def test_an_emptied_server_is_given_its_name_again(servers: list[Server], shards: list[Shard], opened: Opened) -> None:
    host = opened(shards)
    fill(host)
    servers[1].call("FLUSHALL")
    host.refresh_shard_map()
    assert names_of(servers) == ["a", "b"]
    assert host.read("writer", [OF_B]) == [Stored(0, "")]


def test_a_shard_may_be_renamed_while_hosts_with_the_old_list_go_on(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path
) -> None:
    old = opened(shards)
    stored = fill(old)
    renamed = listed(servers, "a", "bee")
    start(tmp_path, renamed)
    new = opened(renamed)
    assert new.read("writer", PAGES) == stored
    rebalance(renamed)
    assert names_of(servers) == ["a", "bee b"]
    for server in servers:
        server.call("CLIENT", "KILL", "TYPE", "normal")
    for host in (old, new, opened(shards), opened(renamed)):
        host.refresh_shard_map()  # as every flush does
        assert host.read("writer", PAGES) == stored
        assert host.ping()
    start(tmp_path, shards)
    assert plan(renamed).is_done


def test_two_hosts_may_call_a_server_by_other_names_and_addresses(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    stored = fill(opened(shards))
    elsewhere = [Shard("x", f"redis://localhost:{servers[0].port}"), Shard("y", f"redis://localhost:{servers[1].port}")]
    assert opened(elsewhere).read("writer", PAGES) == stored


def test_counts_on_a_shard_that_does_not_own_them_are_told(
    servers: list[Server], shards: list[Shard], opened: Opened, tmp_path: Path
) -> None:
    fill(opened(shards))
    assert "another shard has" not in flask(tmp_path, shards, "status")
    servers[0].call("HSET", f"visits:{{{partition_of(OF_B)}}}", OF_B, 7)
    for command in ("status", "rebalance"):
        assert "counts of 1 partitions that another shard has" in flask(tmp_path, shards, command)
    flask(tmp_path, shards, "rebalance", "--set-aside")
    assert "another shard has" not in flask(tmp_path, shards, "status")
    assert len(servers[0].call("KEYS", "visits:*:stray:*")) == 1  # type: ignore[arg-type]  # a list
