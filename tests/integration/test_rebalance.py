"""Shards that come, go and change their names while hosts count: nothing lost, nothing doubled, no count goes down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import rebalancing
from tests.faults.rebalancing import Trial, plan, rebalance
from tests.support.least_acl import LEAST_USER, MANUAL, PASSWORD, rules
from tests.support.redis_servers import Server
from tests.support.servers import REPOSITORY
from visit_counter import steps
from visit_counter.config.settings import Shard
from visit_counter.errors import PartitionMovedError, RebalanceError, StoreError, StoreRefusedError
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import Batch, Stored
from visit_counter.shards.rebalance import moving
from visit_counter.shards.rebalance.moving import Place
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import PARTITIONS, Ring, partition_of
from visit_counter.shards.router import ShardedStore
from visit_counter.shards.shard_map import ShardMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Opened = Callable[[Sequence[Shard]], ShardedStore]

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Server(tmp_path_factory.mktemp(name)))) for name in NAMES]


@pytest.fixture
def shards(servers: list[Server]) -> list[Shard]:
    """Three shards, empty."""
    for server in servers:
        server.call("FLUSHALL")
    return [Shard(name, server.shard.url) for name, server in zip(NAMES, servers, strict=True)]


def test_from_two_shards_to_three_and_back_under_load(tmp_path: Path, shards: list[Shard]) -> None:
    figures = rebalancing.under_load(tmp_path, shards, seed=1)
    must_move = sum(one != other for one, other in zip(Ring("ab").owners, Ring("abc").owners, strict=True))
    assert figures.partitions == 2 * must_move
    assert figures.reads > 100


def test_a_rebalance_killed_at_random_instants_is_finished_by_the_next(tmp_path: Path, shards: list[Shard]) -> None:
    assert rebalancing.killed(tmp_path, shards, seed=2).kills == 6


@pytest.mark.parametrize(
    "step", ["tell:1", "tell:3", "freeze:2", "copy:2", "accept:2", "bury:2", "activate:2", "shard_map:1", "tell:4"]
)
def test_a_rebalance_killed_at_any_step_is_finished_by_the_next(tmp_path: Path, shards: list[Shard], step: str) -> None:
    with Trial(tmp_path, 3) as trial:
        trial.host(shards[:2], complete=False)
        trial.wait_for_visits(100)
        trial.host(shards)
        process = rebalancing.start_process(shards, step)
        _, said = process.communicate()
        assert process.returncode == -9, said
        trial.wait_for_visits(50)
        rebalance(shards)
        assert plan(shards).is_done
        trial.wait_for_visits(50)
        trial.check(shards)


# Without load: what exactly is moved, and what the others see


PAGES = [f"page/{number}" for number in range(2000)]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Make a store of a host with this list."""
    with ExitStack() as stack:

        def make(shards: Sequence[Shard]) -> ShardedStore:
            stores = [RedisStore(shard, connect_seconds=5, read_seconds=5) for shard in shards]
            return stack.enter_context(closing(ShardedStore(stores, shared=True, clock=lambda: 0.0)))

        yield make


def fill(store: ShardedStore) -> list[Stored]:
    """Count each page, in one segment of a writer; return what is stored then."""
    visits: dict[int, dict[str, int]] = {}
    for number, page in enumerate(PAGES):
        visits.setdefault(partition_of(page), {})[page] = number + 1
    applied = store.apply("writer", [Batch(partition, "", "1:a", Tally(pages)) for partition, pages in visits.items()])
    assert {result.error for result in applied} == {None}
    return store.read("writer", PAGES)


def raw(server: Server) -> dict[str, object]:
    """Return every partition of a server as it is: a hash, or a sign."""
    with server.client() as client:
        keys = sorted(
            key for key in client.scan_iter("visits:*", count=5000) if not key.endswith((":topology", ":shard"))
        )
        return {key: client.hgetall(key) if client.type(key) == "hash" else client.get(key) for key in keys}


def test_only_partitions_that_must_are_moved_and_the_dry_run_said_so(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    fill(opened(shards[:2]))
    before = [raw(server) for server in servers]
    foreseen = plan(shards)
    assert [raw(server) for server in servers] == before
    done = rebalance(shards)
    assert done.rows() == foreseen.rows()
    old, new = Ring("ab").owners, Ring("abc").owners
    must = {partition for partition in range(PARTITIONS) if old[partition] != new[partition]}
    assert {move.partition for move in done.moves} == must
    assert sum(row["pages"] for row in done.rows()) == sum(partition_of(page) in must for page in PAGES)
    after = [raw(server) for server in servers]
    for partition in range(PARTITIONS):
        key, home = f"visits:{{{partition}}}", "ab".index(old[partition])
        if partition in must:
            assert after[home][key] == "moved c"
            assert after[2].get(key) == before[home].get(key)
        else:
            assert after[home].get(key) == before[home].get(key)
    assert not [key for found in after for key in found if not key.endswith("}")]
    assert plan(shards).is_done


def test_counts_and_watermarks_are_the_same_before_and_after_on_every_host(shards: list[Shard], opened: Opened) -> None:
    stays, early = opened(shards[:2]), opened(shards)
    stored = fill(stays)
    assert early.read("writer", PAGES) == stored
    rebalance(shards)
    assert early.read("writer", PAGES) == stored
    assert opened(shards).read("writer", PAGES) == stored
    rebalance(shards[:2])
    for host in (stays, early, opened(shards[:2])):
        assert host.read("writer", PAGES) == stored


def test_a_host_with_the_old_list_refuses_what_has_moved_and_serves_the_rest(
    shards: list[Shard], opened: Opened
) -> None:
    old = opened(shards[:2])
    stored = fill(old)
    rebalance(shards)
    owners = Ring("abc").owners
    moved = [page for page in PAGES if owners[partition_of(page)] == "c"]
    here = [page for page in PAGES if owners[partition_of(page)] != "c"]
    assert old.read("writer", here) == [stored[PAGES.index(page)] for page in here]
    for call in (lambda: old.read("writer", moved[:1]), lambda: old.add(moved[0], 1)):
        with pytest.raises(StoreError, match="not in VISITS_SHARDS"):
            call()
    found, failures = old.watermarks_of_reachable("writer", range(PARTITIONS))
    assert found.keys() == {partition for partition in range(PARTITIONS) if owners[partition] != "c"}
    assert failures
    batches = [Batch(partition_of(page), "1:a", "2:b", Tally({page: 1})) for page in (moved[0], here[0])]
    assert [bool(result.error) for result in old.apply("writer", batches)] == [True, False]
    assert opened(shards).read("writer", moved[:1]) == [stored[PAGES.index(moved[0])]]


def test_a_shard_with_a_new_name_keeps_what_the_ring_leaves_it(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    old = opened(shards[:2])
    stored = fill(old)
    renamed = [shards[0], Shard("bee", shards[1].url)]
    new = opened(renamed)
    assert new.read("writer", PAGES) == stored
    before = raw(servers[1])
    done = rebalance(renamed)
    was, now = Ring("ab").owners, Ring(["a", "bee"]).owners
    place = {"a": "a", "b": "server 1", "bee": "server 1"}
    assert {move.partition for move in done.moves} == {
        partition for partition in range(PARTITIONS) if place[was[partition]] != place[now[partition]]
    }
    assert {key for key, value in raw(servers[1]).items() if before.get(key) == value}
    assert opened(renamed).read("writer", PAGES) == stored
    new.refresh_shard_map()
    assert new.read("writer", PAGES) == stored


def test_a_removed_shard_is_found_by_its_kept_address_and_holds_nothing_afterwards(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    stored = fill(opened(shards))
    rebalance(shards[1:])
    assert {value for value in raw(servers[0]).values() if isinstance(value, dict)} == set()
    servers[0].call("FLUSHALL")
    assert opened(shards[1:]).read("writer", PAGES) == stored


@pytest.mark.parametrize(
    ("step", "instead"),
    [(step, instead) for step in ("freeze", "copy", "accept", "bury", "activate") for instead in ("ab", "abd", "cd")],
)
def test_after_a_broken_off_rebalance_another_list_may_be_wanted(  # noqa: PLR0917 - fixtures and parameters
    servers: list[Server],
    shards: list[Shard],
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    instead: str,
) -> None:
    stored = fill(opened(shards[:2]))
    host = opened(shards)
    with pytest.raises(RebalanceError, match="broken off"):
        break_off(shards, step, monkeypatch)
    assert host.read("writer", PAGES) == stored
    by_name = dict(zip("abc", shards, strict=True))
    wanted = [by_name.get(name) or Shard("d", f"{servers[2].shard.url}/1") for name in instead]
    rebalance(wanted)
    assert opened(wanted).read("writer", PAGES) == stored
    assert plan(wanted).is_done
    assert not [key for server in servers for key in raw(server) if not key.endswith("}")]


def break_off(shards: Sequence[Shard], at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebalance, and stop at the second time of a step."""
    times = []

    def hook(step: str) -> None:
        times.extend([step] if step == at else [])
        if len(times) == 2:
            raise RebalanceError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "hook", hook)
        rebalance(shards)


def test_a_shard_that_dies_meanwhile_stops_the_rebalance_and_another_run_ends_it(
    tmp_path: Path, shards: list[Shard], servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []

    def hook(step: str) -> None:
        if step == "accept" and not killed:
            killed.append(step)
            servers[2].kill()

    with Trial(tmp_path, 5) as trial:
        trial.host(shards[:2], complete=False)
        trial.wait_for_visits(100)
        monkeypatch.setattr(steps, "hook", hook)
        with pytest.raises(RebalanceError, match="run it again"):
            rebalance(shards)
        with pytest.raises(RebalanceError, match="needs all shards"):
            rebalance(shards)
        servers[2].start()
        rebalance(shards)
        trial.check(shards)


def test_a_partition_on_its_way_is_read_where_it_is_held_and_takes_no_visit(
    servers: list[Server], shards: list[Shard]
) -> None:
    with closing(RedisStore(shards[0], read_seconds=5)) as store:
        store.apply("writer", [Batch(partition_of("home"), "", "1:a", Tally({"home": 7}))])
        store.run([moving.freeze(partition_of("home"), Place("moving", "b", "run"))])
        assert store.read("writer", ["home"]) == [Stored(7, "1:a")]
        assert store.watermarks("writer", [partition_of("home")]) == ["1:a"]
        (applied,) = store.apply("writer", [Batch(partition_of("home"), "1:a", "2:a", Tally({"home": 1}))])
        assert applied.error == "a partition is being moved; the next flush brings its visits"
        with pytest.raises(StoreRefusedError, match="is being moved"):
            store.add("home", 1)
        store.run([moving.bury(partition_of("home"), Place("moving", "b", "run"))])
        (applied,) = store.apply("writer", [Batch(partition_of("home"), "1:a", "2:a", Tally({"home": 1}))])
        assert applied.moved_to == "b"
        for call in (
            lambda: store.add("home", 1),
            lambda: store.read("writer", ["home"]),
            lambda: store.watermarks("writer", [partition_of("home")]),
        ):
            with pytest.raises(PartitionMovedError, match="has moved to b"):
                call()
        assert raw(servers[0]) == {f"visits:{{{partition_of('home')}}}": "moved b"}


def test_what_was_applied_before_a_partition_moved_does_not_keep_others_from_being_vouched_for(
    shards: list[Shard],
) -> None:
    at = partition_of("home")
    with closing(RedisStore(shards[0], read_seconds=5)) as store:
        store.apply("writer", [Batch(at, "", "1:a", Tally({"home": 7})), Batch(at + 1, "", "1:a", Tally())])
        store.run([moving.freeze(at, Place("moving", "b", "run"))])
        store.close()
        assert store.persist(5) is False
        store.run([moving.bury(at, Place("moving", "b", "run"))])
        assert store.persist(5) is True


def test_a_run_that_was_overtaken_cannot_end_the_move_of_another(shards: list[Shard]) -> None:
    with closing(RedisStore(shards[0])) as store:
        first, second = Place("moving", "b", "first"), Place("moving", "b", "second")
        store.run([moving.freeze(1, first)])
        store.run([moving.freeze(1, second)])
        assert store.run([moving.bury(1, first)]) == [second.to_bytes()]


def test_a_second_rebalance_waits_for_the_first_and_then_gives_up(shards: list[Shard], servers: list[Server]) -> None:
    servers[0].call("SET", "visits:{0}:rebalance", "other")
    with pytest.raises(RebalanceError, match="another rebalance is at work"):
        rebalance(shards)


def test_counts_in_the_way_stop_a_rebalance_until_they_are_set_aside(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    stored = fill(opened(shards[:2]))
    page = next(page for page in PAGES if Ring("ab").shard_of(partition_of(page)) == "b")
    with closing(RedisStore(shards[0])) as first:
        first.add(page, 5)
    with pytest.raises(RebalanceError, match="1 partitions on a; --set-aside"):
        rebalance(shards[:1])
    rebalance(shards[:1], set_aside=True)
    assert opened(shards[:1]).read("writer", PAGES) == stored
    (stray,) = [key for key in raw(servers[0]) if ":stray:" in key]
    assert servers[0].call("HGET", stray, page) == "5"


def test_a_server_that_lost_its_data_or_is_another_is_not_taken_for_an_empty_shard(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    fill(opened(shards[:2]))
    servers[1].call("FLUSHALL")
    with pytest.raises(RebalanceError, match="b: another server is at this address"):
        rebalance(shards[:1])


def test_servers_of_two_installations_are_not_mixed(shards: list[Shard], opened: Opened) -> None:
    opened(shards[:1]).load_shard_map()
    opened(shards[1:]).load_shard_map()
    with pytest.raises(StoreRefusedError, match="different installations"):
        opened(shards).read("writer", ["home"])
    with pytest.raises(RebalanceError, match="different installations"):
        rebalance(shards)


def test_nothing_is_read_or_written_until_it_is_known_which_shards_have_the_counts(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    fill(opened(shards[:2]))
    gone = [Shard(shard.name, "redis://127.0.0.1:1") for shard in shards[:2]]
    host = opened([*gone, shards[2]])
    page = next(page for page in PAGES if Ring("abc").shard_of(partition_of(page)) == "c")
    with pytest.raises(StoreError, match="unknown"):
        host.read("writer", [page])
    assert all(
        result.error for result in host.apply("writer", [Batch(partition_of(page), "", "1:a", Tally({page: 1}))])
    )
    assert host.watermarks_of_reachable("writer", [1])[1]
    assert raw(servers[2]) == {}


def test_a_member_that_lost_its_data_is_given_the_shard_map_again(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    host = opened(shards)
    host.load_shard_map()
    kept = servers[0].call("GET", "visits:{0}:topology")
    for server in servers:
        server.call("FLUSHALL")
        host.refresh_shard_map()
    assert [server.call("GET", "visits:{0}:topology") for server in servers] == [kept] * 3
    assert ShardMap.from_text(str(kept)).shards.keys() == {"a", "b", "c"}


def test_a_host_that_runs_on_finds_pages_when_the_removed_shard_is_switched_off(
    shards: list[Shard], servers: list[Server]
) -> None:
    now = [0.0]
    stores = [RedisStore(shard, connect_seconds=5, read_seconds=5) for shard in shards]
    with closing(ShardedStore(stores, shared=True, clock=lambda: now[0])) as host:
        stored = fill(host)
        rebalance(shards[:2])
        servers[2].kill()
        try:
            page = next(page for page in PAGES if Ring("abc").shard_of(partition_of(page)) == "c")
            with pytest.raises(StoreError):
                host.read("writer", [page])
            now[0] = 10.0
            with pytest.raises(StoreError):
                host.read("writer", [page])
            assert host.read("writer", [page]) == [stored[PAGES.index(page)]]
        finally:
            servers[2].start()


# As a person runs it


def flask(folder: Path, shards: Sequence[Shard], *arguments: str, status: int = 0) -> str:
    """Run a flask command with this list of shards; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISITS_")}
    given = {
        "VISITS_SHARDS": ",".join(f"{shard.name}={shard.url}" for shard in shards),
        "VISITS_DATA_DIR": str(folder),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("flask"), "shards", *arguments],
        cwd=REPOSITORY,
        env=kept | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_command_plans_then_moves_and_says_so(tmp_path: Path, shards: list[Shard], opened: Opened) -> None:
    stored = fill(opened(shards[:2]))
    assert "the counts are on a, b; flask shards rebalance moves" in flask(tmp_path, shards, "status")
    foreseen = flask(tmp_path, shards, "rebalance", "--dry-run")
    assert "1,359 of 4,096 partitions" in foreseen
    said = flask(tmp_path, shards, "rebalance")
    assert said.startswith(foreseen)
    assert said.endswith("every page is on its shard\n")
    assert opened(shards).read("writer", PAGES) == stored
    assert "rebalance" not in flask(tmp_path, shards, "status")
    assert json.loads(flask(tmp_path, shards, "rebalance", "--dry-run", "--json")) == []


def test_the_command_tells_in_one_line_what_is_in_its_way(tmp_path: Path, shards: list[Shard], opened: Opened) -> None:
    fill(opened(shards[:2]))
    gone = Shard("c", "redis://127.0.0.1:1")
    flask(tmp_path, shards[:2], "status")  # makes the journal, which the first command of all waits for
    said = flask(tmp_path, [*shards[:2], gone], "rebalance", status=1)
    assert said.startswith("Error: c: ")
    assert "a rebalance needs all shards" in said
    said = flask(tmp_path, shards, "rebalance", "--from", "b=http://x", status=1)
    assert "--from is wrong in entry 1" in said


def test_a_removed_shard_with_a_password_is_given_with_from(
    tmp_path: Path, servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    servers[1].call("CONFIG", "SET", "requirepass", "secret")
    try:
        locked = Shard("b", f"redis://:secret@127.0.0.1:{servers[1].port}")
        stored = fill(opened([shards[0], locked]))
        said = flask(tmp_path, shards[:1], "rebalance", status=1)
        assert "b: " in said
        assert "secret" not in said
        flask(tmp_path, shards[:1], "rebalance", "--from", f"b={locked.url}")
        assert opened(shards[:1]).read("writer", PAGES) == stored
    finally:
        with closing(RedisStore(locked)) as store:
            store.run([(b"CONFIG", b"SET", b"requirepass", b"")])


def test_a_rebalance_needs_no_more_rights_than_the_manual_says(
    servers: list[Server], shards: list[Shard], opened: Opened
) -> None:
    (more,) = re.findall(r"`flask shards rebalance` needs more: `(.*)`", MANUAL.read_text(encoding="utf-8"))
    for server in servers:
        server.call("ACL", "SETUSER", LEAST_USER, *rules(), *more.split())
    login = [Shard(shard.name, shard.url.replace("//", f"//{LEAST_USER}:{PASSWORD}@")) for shard in shards]
    stored = fill(opened(login[:2]))
    rebalance(login)
    rebalance(login[:2], former=login)
    assert opened(login[:2]).read("writer", PAGES) == stored


def test_partitions_are_not_moved_to_or_from_a_cluster(shards: list[Shard]) -> None:
    with pytest.raises(RebalanceError, match="d: partitions cannot be moved to or from a cluster"):
        rebalance([*shards, Shard("d", "redis+cluster://127.0.0.1:1")])
