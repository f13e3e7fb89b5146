"""ClusterStore on a real cluster: slots move, primaries die; nothing is lost, doubled or sent twice."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.cluster import SLOTS, Cluster, cut_off
from tests.support.least_acl import LEAST_USER, PASSWORD
from tests.support.ports import free_port
from tests.support.proxy import LossyProxy
from tests.support.redis_servers import Server
from tests.support.servers import wait_until
from tests.support.under_load import PAGES, load
from visit_counter.config.settings import Shard
from visit_counter.errors import StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.shards.check import check_shard, warnings_of
from visit_counter.shards.cluster.slots import SLOT_OF
from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.contract import Applied, Batch, Stored
from visit_counter.shards.ring import PARTITIONS, partition_of
from visit_counter.shards.router import ShardedStore

HOME = partition_of("home")
SLOT = SLOT_OF[HOME]


def patient(shard: Shard) -> ClusterStore:
    """Return a store that is patient with a machine that has other things to do."""
    return ClusterStore(shard, connect_seconds=5, read_seconds=5, add_seconds=5, apply_seconds=10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster, which each test leaves whole."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """Return the cluster, emptied, and every server up."""
    running.mend()
    return running


@pytest.fixture
def store(cluster: Cluster) -> Iterator[ClusterStore]:
    """Return a store on the cluster."""
    with closing(patient(cluster.shard)) as made:
        yield made


def home_batch(number: int) -> Batch:
    """Return the batch that takes page `home` from segment number - 1 to number."""
    return Batch(HOME, f"{number - 1}:a" if number > 1 else "", f"{number}:a", Tally({"home": 1}))


def other_primary(cluster: Cluster, server: Server) -> Server:
    """Return a primary that is not this one."""
    return next(each for each in cluster.primaries() if each is not server)


# Slots move


def test_a_slot_that_has_moved_is_found_where_it_is_now(cluster: Cluster, store: ClusterStore) -> None:
    assert store.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
    source = cluster.owner_of(SLOT)
    target = other_primary(cluster, source)
    cluster.move_slot(SLOT, source, target)
    assert store.read("writer", ["home"]) == [Stored(1, "1:a")]
    cluster.move_slot(SLOT, target, source)
    assert store.apply("writer", [home_batch(2)]) == [Applied(HOME, "2:a")]
    cluster.move_slot(SLOT, source, target)
    assert store.add("home", 1) == 3
    assert store.watermarks("writer", [HOME]) == ["2:a"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_slot_on_its_way_takes_and_gives_each_partition_where_it_is(
    cluster: Cluster, store: ClusterStore, exists: bool
) -> None:
    source = cluster.owner_of(SLOT)
    target = other_primary(cluster, source)
    if exists:
        store.apply("writer", [home_batch(1)])
    first = 2 if exists else 1
    target.call("CLUSTER", "SETSLOT", SLOT, "IMPORTING", str(source.call("CLUSTER", "MYID")))
    source.call("CLUSTER", "SETSLOT", SLOT, "MIGRATING", str(target.call("CLUSTER", "MYID")))
    assert store.read("writer", ["home"]) == [Stored(1, "1:a") if exists else Stored(0, "")]
    # A server that has not the script yet says so after ASKING as well.
    target.call("SCRIPT", "FLUSH")
    batches = [home_batch(first), home_batch(first + 1)]
    assert store.apply("writer", batches) == [Applied(HOME, batch.watermark) for batch in batches]
    assert store.add("home", 1) == first + 2
    assert source.call("CLUSTER", "COUNTKEYSINSLOT", SLOT) == (1 if exists else 0)
    cluster.move_slot(SLOT, source, target)
    assert store.read("writer", ["home"]) == [Stored(first + 2, f"{first + 1}:a")]
    assert store.persist(5) is True


def begin_move(cluster: Cluster, *, with_key: bool) -> tuple[Server, Server]:
    """Begin to move the slot of `home`, with its key or before that; return its old and its new server."""
    source = cluster.owner_of(SLOT)
    target = other_primary(cluster, source)
    target.call("CLUSTER", "SETSLOT", SLOT, "IMPORTING", str(source.call("CLUSTER", "MYID")))
    source.call("CLUSTER", "SETSLOT", SLOT, "MIGRATING", str(target.call("CLUSTER", "MYID")))
    if with_key:
        moved = source.call("MIGRATE", "127.0.0.1", target.port, f"visits:{{{HOME}}}", 0, 5000)
        assert moved in (True, "OK")
    return source, target


@pytest.mark.parametrize("with_key", [False, True])
def test_a_server_is_up_and_its_pages_are_counted_while_a_slot_leaves_it(
    cluster: Cluster, store: ClusterStore, with_key: bool
) -> None:
    pages = [f"page/{at}" for at in range(PARTITIONS)]
    store.apply("writer", [Batch(at, "", "1:a", Tally({page: 1})) for at, page in enumerate(pages)])
    source, target = begin_move(cluster, with_key=with_key)
    try:
        rows = store.status("writer", range(PARTITIONS), strays=True)
        assert [(row.up, row.error, row.warnings) for row in rows] == [(True, "", ())] * 3
        assert sum(row.pages or 0 for row in rows) == PARTITIONS
        assert store.ping() is True
        assert store.reason() == ""
    finally:
        cluster.move_slot(SLOT, source, target)
    assert sum(row.pages or 0 for row in store.status("writer", range(PARTITIONS))) == PARTITIONS


@pytest.mark.parametrize("reconnects", [False, True])
def test_what_was_applied_is_persisted_while_its_slot_moves(
    cluster: Cluster, store: ClusterStore, reconnects: bool
) -> None:
    store.apply("writer", [home_batch(1)])
    source, target = begin_move(cluster, with_key=True)
    try:
        if reconnects:
            # What a lost connection had applied is looked for, and that partition is not where the cluster says.
            source.call("CLIENT", "KILL", "TYPE", "normal")
        wait_until(lambda: store.persist(5) is True, "the move not to matter")
    finally:
        cluster.move_slot(SLOT, source, target)
    assert store.persist(5) is True


def test_a_server_vouches_only_for_what_it_was_sent_itself(cluster: Cluster, store: ClusterStore) -> None:
    """A write that was to speak for all that a server was sent before, and that another one took, says nothing."""
    store.apply("writer", [home_batch(1)])
    source, target = begin_move(cluster, with_key=True)
    try:
        with closing(patient(cluster.shard)) as another:
            assert another.watermarks("writer", [HOME]) == ["1:a"]
            (chosen,) = another.one_per_server([HOME])
            assert another.apply("writer", [Batch(chosen, "1:a", "1:a", Tally())]) == [Applied(HOME, "1:a")]
            assert another.persist(5) is False
    finally:
        cluster.move_slot(SLOT, source, target)


def test_a_slot_that_nobody_has_is_the_trouble_of_its_partitions_alone(cluster: Cluster) -> None:
    source = cluster.owner_of(SLOT)
    with closing(patient(cluster.shard)) as store:
        assert store.ping() is True
        for server in cluster.servers:
            server.call("CLUSTER", "DELSLOTS", SLOT)
        try:
            found, errors = ShardedStore([store]).watermarks_of_reachable("writer", range(PARTITIONS))
            assert PARTITIONS - 3 <= len(found) < PARTITIONS
            assert HOME not in found
            assert [error.store for error in errors] == ["cluster"] * len(errors)
            results = store.apply(
                "writer", [Batch(at, "", "1:a", Tally({f"page/{at}": 1})) for at in range(PARTITIONS)]
            )
            assert {result.partition for result in results if result.error} == set(range(PARTITIONS)) - found.keys()
            # The servers that said so are not taken to be down.
            assert not any(store.is_down(page) for page in PAGES if partition_of(page) in found)
            assert not any(node.reason() for node in store.servers.with_partitions())
            assert store.ping() is False
            assert f"of {PARTITIONS} partitions" in store.reason()
            assert [row.up for row in store.status("writer", range(PARTITIONS))] == [True, True, True, False]
        finally:
            for server in [source, *cluster.servers]:
                server.call("CLUSTER", "SETSLOT", SLOT, "NODE", str(source.call("CLUSTER", "MYID")))
            wait_until(lambda: cluster.owner_of(SLOT) is source, "the slot to be served")
        cluster.wait_until_whole()
        wait_until(store.ping, "all to be well")
        assert store.reason() == ""


def test_no_visit_is_lost_or_doubled_while_slots_move_under_load(cluster: Cluster, tmp_path: Path) -> None:
    with load(tmp_path, [ClusterStore(cluster.shard)]) as oracle:
        for page in PAGES[:25]:
            slot = SLOT_OF[partition_of(page)]
            source = cluster.owner_of(slot)
            cluster.move_slot(slot, source, other_primary(cluster, source))
    assert oracle.mistakes == []
    assert oracle.answers > 100


# Servers die


@pytest.mark.parametrize("behind", [False, True])
def test_no_visit_is_lost_or_doubled_when_a_primary_is_killed_under_load(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, behind: bool
) -> None:
    caplog.set_level(logging.WARNING)
    # None is retained for its own sake: only what a replica lacks is.
    with load(tmp_path, [ClusterStore(cluster.shard)], retain_segments=0) as oracle:
        wait_until(lambda: oracle.answers > 500, "some load")
        cluster.fail_over(cluster.primaries()[0], behind=behind)
        before = oracle.answers
        wait_until(lambda: oracle.answers > before + 500, "some load after the failover")
    assert oracle.mistakes == []
    if behind:
        assert "made whole from the retained segments" in caplog.text


def test_a_primary_that_is_gone_with_its_replica_leaves_the_other_slots_as_they_are(
    cluster: Cluster, store: ClusterStore
) -> None:
    primary = cluster.owner_of(SLOT)
    replica = cluster.replica_of(primary)
    assert store.ping() is True
    replica.kill()
    primary.kill()
    results = store.apply("writer", [Batch(partition, "", "1:a", Tally({"x": 1})) for partition in range(PARTITIONS)])
    lost = {result.partition for result in results if result.error is not None}
    assert HOME in lost
    assert PARTITIONS / 4 < len(lost) < PARTITIONS / 2
    assert {result.watermark for result in results if result.partition not in lost} == {"1:a"}
    with pytest.raises(StoreUnavailableError, match="cluster"):
        store.read("writer", ["home"])
    there = [page for page in PAGES if partition_of(page) not in lost]
    assert store.is_down("home")
    assert store.needs_probe()
    assert not any(store.is_down(page) for page in there)
    assert store.owner("home") not in {store.owner(page) for page in there}
    assert [stored.watermark for stored in store.read("writer", there)] == ["1:a"] * len(there)
    assert store.add(there[0], 1) == 1
    assert store.ping() is False
    assert store.persist(1) is False


def test_a_reader_that_asks_for_nothing_learns_from_the_probe_that_a_replica_was_promoted(
    cluster: Cluster, store: ClusterStore
) -> None:
    store.apply("writer", [home_batch(1)])
    primary = cluster.owner_of(SLOT)
    wait_until(lambda: primary.call("WAIT", 1, 100) == 1, "the replica to have it")
    primary.kill()
    with pytest.raises(StoreUnavailableError):
        store.read("writer", ["home"])
    assert store.is_down("home")

    def is_found() -> bool:
        store.probe()
        return not store.is_down("home")

    wait_until(is_found, "the promoted server to be found")
    assert not store.needs_probe()
    assert store.read("writer", ["home"]) == [Stored(1, "1:a")]


# Nothing claimed that is not on disk


def test_what_a_killed_primary_had_is_vouched_for_by_the_one_that_has_it_now(
    cluster: Cluster, store: ClusterStore
) -> None:
    store.apply("writer", [home_batch(1)])
    primary = cluster.owner_of(SLOT)
    wait_until(lambda: primary.call("WAIT", 1, 100) == 1, "the replica to have it")
    cluster.fail_over(primary)
    wait_until(lambda: store.persist(1) is True, "the promoted server to vouch for it")
    assert store.read("writer", ["home"]) == [Stored(1, "1:a")]


def test_what_a_promoted_replica_lacks_is_not_called_persisted_until_it_is_sent_again(
    cluster: Cluster, store: ClusterStore
) -> None:
    store.apply("writer", [home_batch(1)])
    assert store.persist(5) is True
    store.apply("writer", [home_batch(2)])
    promoted = cluster.owner_of(SLOT)
    promoted.call("HDEL", f"visits:{{{HOME}}}", "\twriter")  # as if it had never received it
    target = other_primary(cluster, promoted)
    cluster.move_slot(SLOT, promoted, target)
    cluster.wait_until_all_know(SLOT, target)
    assert store.persist(1) is False
    assert store.apply("writer", [Batch(HOME, "", "2:a", Tally({"home": 1}))]) == [Applied(HOME, "2:a")]
    assert store.persist(5) is True


def test_a_replica_that_may_be_promoted_must_have_it_too(cluster: Cluster, store: ClusterStore) -> None:
    primary = cluster.owner_of(SLOT)
    replica = cluster.replica_of(primary)
    # The cluster knows of it, and the primary has no replica.
    cut_off(replica, primary)
    try:
        store.apply("writer", [home_batch(1)])
        assert store.persist(0.2) is False
    finally:
        primary.call("ACL", "SETUSER", "default", "+psync", "+sync")
    cluster.wait_until_whole()
    assert store.persist(5) is True


def test_another_process_vouches_for_what_was_sent_to_each_server(cluster: Cluster, store: ClusterStore) -> None:
    """A write to one server says nothing of the disks of the others."""
    store.watermarks("writer", range(PARTITIONS))
    chosen = store.one_per_server(range(PARTITIONS))
    assert {cluster.owner_of_partition(at).port for at in chosen} == {each.port for each in cluster.primaries()}
    assert store.one_per_server([HOME]) == [HOME]
    assert store.one_per_server([]) == []


# Nothing twice


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[Server, LossyProxy, Shard]]:
    """A cluster of one server, which tells everybody the address of a proxy."""
    with ExitStack() as stack:
        port = free_port()
        proxy = stack.enter_context(closing(LossyProxy(port)))
        options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-announce-ip", "127.0.0.1"]
        options += ["--cluster-announce-port", str(proxy.port), "--cluster-announce-bus-port", "1"]
        server = stack.enter_context(closing(Server(tmp_path / "one", *options, port=port)))
        server.call("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: "cluster_state:ok" in str(server.call("CLUSTER", "INFO")), "the cluster to be up")
        yield server, proxy, Shard("proxied", f"redis+cluster://127.0.0.1:{proxy.port}")


def test_a_batch_whose_reply_is_lost_is_sent_once_and_counts_once_when_sent_again(
    proxied: tuple[Server, LossyProxy, Shard],
) -> None:
    server, proxy, shard = proxied
    with closing(patient(shard)) as store:
        assert store.ping() is True
        proxy.lose_reply_to = b"EVALSHA"
        (applied,) = store.apply("writer", [home_batch(1)])
        assert applied.error is not None
        assert proxy.requests.count(b"EVALSHA") == 1
        assert server.call("HGET", f"visits:{{{HOME}}}", "home") == "1"
        proxy.lose_reply_to = None
        assert store.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
        assert server.call("HGET", f"visits:{{{HOME}}}", "home") == "1"


def test_an_add_whose_reply_is_lost_is_sent_once_and_reported_unknown(
    proxied: tuple[Server, LossyProxy, Shard],
) -> None:
    server, proxy, shard = proxied
    with closing(patient(shard)) as store:
        proxy.lose_reply_to = b"HINCRBY"
        with pytest.raises(StoreUnavailableError, match="proxied"):
            store.add("home", 1)
        assert proxy.requests.count(b"HINCRBY") == 1
        assert server.call("HGET", f"visits:{{{HOME}}}", "home") == "1"


# What is said of it


def test_each_server_is_looked_at_with_its_partitions_and_pages(cluster: Cluster, store: ClusterStore) -> None:
    for writer in ("writer", "other"):
        store.apply(writer, [Batch(at, "", "1:a", Tally({f"page/{at}": 1})) for at in range(PARTITIONS)])
    rows = store.status("writer", range(PARTITIONS))
    assert sorted(row.address for row in rows) == sorted(f"127.0.0.1:{each.port}" for each in cluster.primaries())
    assert sum(row.partitions for row in rows) == PARTITIONS
    # Neither writer's watermark is taken for a page.
    assert [row.pages for row in rows] == [row.partitions for row in rows]
    assert all(row.up and row.said is not None and row.said.role == "master" for row in rows)
    assert all(row.warnings == () for row in rows)


def test_of_several_hosts_one_that_answers_is_enough(cluster: Cluster) -> None:
    shard = Shard("c", cluster.shard.url.replace("@", f"@127.0.0.1:{free_port()},"))
    assert check_shard(shard) is None
    assert warnings_of(shard) == []


# What else may be wrong


def test_a_wrong_password_is_refused_and_not_shown(cluster: Cluster) -> None:
    shard = Shard("cluster", cluster.shard.url.replace(PASSWORD, "wrong-canary"))
    with closing(patient(shard)) as store:
        with pytest.raises(StoreRefusedError, match=r"WRONGPASS|invalid username") as refused:
            store.read("writer", ["home"])
        (applied,) = store.apply("writer", [home_batch(1)])
        (row,) = store.status("writer", range(PARTITIONS))
    assert "canary" not in f"{refused.value!r} {refused.value} {applied} {row} {store!r} {shard!r}"


def test_a_server_that_is_no_cluster_is_refused_with_its_own_words(tmp_path: Path) -> None:
    with (
        closing(Server(tmp_path)) as server,
        closing(patient(Shard("x", f"redis+cluster://127.0.0.1:{server.port}"))) as store,
        pytest.raises(StoreRefusedError, match="cluster support disabled"),
    ):
        store.read("writer", ["home"])


def test_a_cluster_that_is_down_is_unavailable() -> None:
    shard = Shard("gone", f"redis+cluster://{LEAST_USER}:{PASSWORD}@127.0.0.1:{free_port()}")
    with closing(patient(shard)) as store:
        with pytest.raises(StoreUnavailableError, match="gone"):
            store.read("writer", ["home"])
        assert store.ping() is False
        assert store.persist(1) is False


def test_a_primary_that_hangs_does_not_hold_up_the_others(cluster: Cluster) -> None:
    with closing(ClusterStore(cluster.shard, connect_seconds=5, read_seconds=0.5)) as store:
        assert store.ping() is True
        primary = cluster.owner_of(SLOT)
        others = [page for page in PAGES if cluster.owner_of_partition(partition_of(page)) is not primary]
        primary.freeze()
        try:
            with pytest.raises(StoreError, match="cluster"):
                store.read("writer", ["home"])
            assert [stored.visits for stored in store.read("writer", others)] == [0] * len(others)
        finally:
            primary.thaw()
