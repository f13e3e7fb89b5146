"""RedisStore on a real server: nothing in part, nothing twice, nothing claimed that is not on disk."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from tests.support.ports import free_port
from tests.support.proxy import LossyProxy
from tests.support.redis_servers import Server
from tests.support.servers import wait_until
from visit_counter.config.settings import Shard
from visit_counter.errors import StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NOT_A_PARTITION, Applied, Batch, Store, Stored
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.redis.breaker import Breaker
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import partition_of
from visit_counter.shards.router import ShardedStore

HOME = partition_of("home")
HOME_KEY = f"visits:{{{HOME}}}"


def patient(shard: Shard, breaker: Breaker | None = None) -> RedisStore:
    """Return a store that is patient with a machine that has other things to do."""
    return RedisStore(shard, connect_seconds=10, read_seconds=10, add_seconds=10, apply_seconds=20, breaker=breaker)


def home_batch(number: int, visits: int = 1) -> Batch:
    """Return the batch that takes page `home` from segment number - 1 to number."""
    return Batch(HOME, f"{number - 1}:a" if number > 1 else "", f"{number}:a", Tally({"home": visits}))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with closing(Server(tmp_path_factory.mktemp("shared"))) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """Return the server, emptied."""
    running.call("FLUSHALL")
    return running


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    """Return a store on the server."""
    with closing(patient(server.shard)) as made:
        yield made


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server for one test, with options."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(tmp_path / str(len(started)), *options))
        return started[-1]

    yield start
    for each in started:
        each.close()


# Nothing in part


@pytest.mark.parametrize("value", ["not a number", "", "-1", "1.5", "0x10", " 1", "9" * 30, "007"])
@pytest.mark.parametrize("position", [0, 1500, 2499])
def test_a_count_that_is_no_number_holds_up_no_other_page_and_its_visits_are_set_aside(
    server: Server, store: RedisStore, value: str, position: int
) -> None:
    pages = [f"page/{number}" for number in range(2500)]
    bad = pages[position]
    server.call("HSET", "visits:{5}", bad, value)
    for number in (1, 2):
        batch = Batch(5, "" if number == 1 else "1:a", f"{number}:a", Tally(dict.fromkeys(pages, 1)))
        assert store.apply("writer", [batch]) == [Applied(5, f"{number}:a", aside=(bad,))]
    stored = server.call("HGETALL", "visits:{5}")
    assert isinstance(stored, dict)
    assert stored == dict.fromkeys(pages, "2") | {
        bad: value,
        "\twriter": "2:a",
        "\tstamp": "writer/2:a ",
        "\taside": "2",
        f"\taside\t{bad}": "2",
    }
    # Mended by a person, they are counted with the next visit.
    server.call("HSET", "visits:{5}", bad, "100")
    assert store.apply("writer", [Batch(5, "2:a", "3:a", Tally({bad: 1}))]) == [Applied(5, "3:a")]
    assert server.call("HMGET", "visits:{5}", bad, "\taside", f"\taside\t{bad}") == ["103", "0", "0"]


def test_visits_of_several_pages_are_set_aside_each_for_itself(server: Server, store: RedisStore) -> None:
    server.call("HSET", "visits:{5}", "a", "x", "b", "y")
    [applied] = store.apply("writer", [Batch(5, "", "1:a", Tally({"a": 1, "b": 2, "c": 3}))])
    assert applied.aside == ("a", "b")
    server.call("HDEL", "visits:{5}", "a")
    assert store.apply("writer", [Batch(5, "1:a", "2:a", Tally({"a": 5, "c": 1}))]) == [Applied(5, "2:a")]
    assert server.call("HMGET", "visits:{5}", "a", "b", "c", "\taside", "\taside\tb") == ["6", "y", "4", "2", "2"]


def test_a_count_is_exact_also_beyond_two_to_the_53rd(server: Server, store: RedisStore) -> None:
    for count in (2**53 - 2, 2**53 - 1, 2**53, 10**17 + 1):
        server.call("DEL", HOME_KEY)
        server.call("HSET", HOME_KEY, "home", str(count))
        assert store.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
        assert store.read("writer", ["home"]) == [Stored(count + 1, "1:a")]


def test_what_stands_for_a_watermark_is_returned_as_it_is_and_can_be_replaced(
    server: Server, store: RedisStore
) -> None:
    with server.client() as client:
        client.connection_pool.connection_kwargs["decode_responses"] = False
        client.hset(HOME_KEY, b"\twriter", b"\xff\x00 abc")
    server.call("RPUSH", "visits:{7}", "a list")
    server.call("SET", "visits:{8}", "a string")
    found = store.watermarks("writer", [HOME, 7, 8, 9])
    assert found[1:] == [NOT_A_PARTITION, NOT_A_PARTITION, ""]
    assert store.apply("writer", [Batch(HOME, found[0], "1:a", Tally({"home": 2}))]) == [Applied(HOME, "1:a")]
    assert store.read("writer", ["home"]) == [Stored(2, "1:a")]


def test_a_key_of_another_type_refuses_the_batch_and_the_read(server: Server, store: RedisStore) -> None:
    server.call("SET", HOME_KEY, "a string")
    (applied,) = store.apply("writer", [home_batch(1)])
    assert applied.error is not None
    assert "WRONGTYPE" in applied.error
    assert server.call("GET", HOME_KEY) == "a string"
    for refused in (lambda: store.read("writer", ["home"]), lambda: store.add("home", 1)):
        with pytest.raises(StoreRefusedError, match="WRONGTYPE"):
            refused()


def test_a_value_that_is_no_count_is_refused_by_read(server: Server, store: RedisStore) -> None:
    server.call("HSET", HOME_KEY, "home", "many")
    with pytest.raises(StoreRefusedError, match="not a count"):
        store.read("writer", ["home"])


def test_a_server_out_of_memory_refuses_whole_batches_and_still_reads(own_server: Callable[..., Server]) -> None:
    server = own_server()
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        server.call("CONFIG", "SET", "maxmemory", "1")
        (applied,) = store.apply("writer", [home_batch(2)])
        assert applied.error is not None
        assert "OOM" in applied.error
        assert applied.refused
        with pytest.raises(StoreRefusedError, match="OOM"):
            store.add("home", 1)
        assert store.read("writer", ["home"]) == [Stored(1, "1:a")]
        server.call("CONFIG", "SET", "maxmemory", "0")
        assert store.apply("writer", [home_batch(2)]) == [Applied(HOME, "2:a")]


def test_a_user_who_may_not_write_changes_nothing(server: Server) -> None:
    server.call("ACL", "SETUSER", "reader", "on", ">secret", "~visits:*", "+@all", "-hset")
    shard = Shard(name="shard", url=f"redis://reader:secret@127.0.0.1:{server.port}")
    with closing(patient(shard)) as store:
        (applied,) = store.apply("writer", [home_batch(1)])
    assert applied.error is not None
    assert server.call("EXISTS", HOME_KEY) == 0


# Nothing twice


@pytest.fixture
def proxy(server: Server) -> Iterator[LossyProxy]:
    """Return a proxy in front of the server."""
    with closing(LossyProxy(server.port)) as made:
        yield made


def test_an_add_whose_reply_is_lost_is_sent_once_and_reported_unknown(server: Server, proxy: LossyProxy) -> None:
    with closing(patient(proxy.shard, Breaker(probe_seconds=0.0))) as store:
        assert store.add("home", 1) == 1
        proxy.lose_reply_to = b"HINCRBY"
        with pytest.raises(StoreUnavailableError, match="proxied"):
            store.add("home", 1)
        assert proxy.requests.count(b"HINCRBY") == 2
        assert server.call("HGET", HOME_KEY, "home") == "2"
        proxy.lose_reply_to = None
        assert store.add("home", 1) == 3


def test_a_batch_whose_reply_is_lost_is_sent_once_and_counts_once_when_sent_again(
    server: Server, proxy: LossyProxy
) -> None:
    with closing(patient(proxy.shard)) as store:
        proxy.lose_reply_to = b"EVALSHA"
        (applied,) = store.apply("writer", [home_batch(1)])
        assert applied.error is not None
        assert proxy.requests.count(b"EVALSHA") == 1
        assert server.call("HGET", HOME_KEY, "home") == "1"
        proxy.lose_reply_to = None
        assert store.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
        assert store.read("writer", ["home"]) == [Stored(1, "1:a")]


def test_once_a_shard_is_down_the_rest_of_a_flush_is_not_tried(proxy: LossyProxy) -> None:
    with closing(patient(proxy.shard)) as store:
        proxy.lose_reply_to = b"EVALSHA"
        results = store.apply("writer", [Batch(partition, "", "1:a", Tally({"x": 1})) for partition in range(1000)])
        assert [result.partition for result in results] == list(range(1000))
        assert all(result.error for result in results[64:])
        assert proxy.requests.count(b"EVALSHA") == 64


def test_a_server_that_forgot_the_script_is_given_it_again(server: Server, store: RedisStore) -> None:
    for number in range(1, 4):
        server.call("SCRIPT", "FLUSH")
        batches = [
            Batch(partition, home_batch(number).expected, f"{number}:a", Tally({"x": 1})) for partition in range(100)
        ]
        assert store.apply("writer", batches) == [Applied(partition, f"{number}:a") for partition in range(100)]
    assert server.call("HGET", "visits:{99}", "x") == "3"


# Nothing claimed that is not on disk


def test_what_is_not_synced_is_not_called_persisted(own_server: Callable[..., Server]) -> None:
    server = own_server("--appendfsync", "no")
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        assert store.persist(0.05) is False
        server.call("CONFIG", "SET", "appendfsync", "always")
        store.apply("writer", [home_batch(2)])
        assert store.persist(10) is True


def test_a_batch_found_to_be_there_already_is_waited_for_too(own_server: Callable[..., Server]) -> None:
    server = own_server("--appendfsync", "no")
    with closing(patient(server.shard)) as first, closing(patient(server.shard)) as second:
        first.apply("writer", [home_batch(1)])
        assert second.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
        assert second.persist(0.05) is False


def test_what_was_applied_over_a_lost_connection_is_looked_for_before_it_is_called_persisted(
    server: Server, store: RedisStore
) -> None:
    store.apply("writer", [home_batch(1)])
    server.call("CLIENT", "KILL", "TYPE", "normal")
    assert store.persist(10) is True


def test_what_was_applied_over_a_lost_connection_is_waited_for(own_server: Callable[..., Server]) -> None:
    server = own_server("--appendfsync", "no")
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        server.call("CLIENT", "KILL", "TYPE", "normal")
        assert store.persist(0.05) is False


def test_a_server_that_came_back_without_it_is_not_believed_until_it_is_applied_again(
    own_server: Callable[..., Server],
) -> None:
    server = own_server("--appendonly", "no")
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        server.kill()
        server.options = ()
        server.start()
        assert [store.persist(10) for _ in range(3)] == [False] * 3
        assert store.apply("writer", [home_batch(1)]) == [Applied(HOME, "1:a")]
        assert store.persist(10) is True


def test_a_later_watermark_of_the_writer_includes_the_earlier(server: Server, store: RedisStore) -> None:
    store.apply("writer", [home_batch(1)])
    server.call("CLIENT", "KILL", "TYPE", "normal")
    with closing(patient(server.shard)) as another_process:
        another_process.apply("writer", [home_batch(2)])
    assert store.persist(10) is True
    assert store.read("writer", ["home"]) == [Stored(2, "2:a")]


def test_a_server_without_an_append_only_file_cannot_tell(own_server: Callable[..., Server]) -> None:
    server = own_server("--appendonly", "no")
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        assert store.persist(10) is None


def test_a_connected_replica_has_to_have_it_on_disk_too(own_server: Callable[..., Server]) -> None:
    primary = own_server("--repl-diskless-sync-delay", "0")
    replica = own_server("--replicaof", f"127.0.0.1 {primary.port}")
    linked = "'master_link_status': 'up'"
    wait_until(lambda: linked in str(replica.call("INFO", "replication")), "the replica to connect")
    with closing(patient(primary.shard)) as store:
        store.apply("writer", [home_batch(1)])
        assert store.persist(10) is True
        replica.freeze()
        store.apply("writer", [home_batch(2)])
        assert store.persist(0.05) is False
        replica.thaw()
        assert store.persist(10) is True


# Down, and back


def test_nobody_listening_is_unavailable_everywhere() -> None:
    shard = Shard(name="gone", url=f"redis://:secret@127.0.0.1:{free_port()}")
    with closing(RedisStore(shard)) as store:
        assert store.ping() is False
        for call in (lambda: store.read("w", ["a"]), lambda: store.add("a", 1), lambda: store.watermarks("w", [1])):
            with pytest.raises(StoreUnavailableError, match="gone") as caught:
                call()
            assert "secret" not in str(caught.value)
        (applied,) = store.apply("writer", [home_batch(1)])
        assert applied.error is not None
        assert "refused" in applied.error
        assert store.persist(1) is False


def test_of_a_shard_that_hangs_one_read_finds_out_and_it_comes_back_by_itself(
    own_server: Callable[..., Server],
) -> None:
    server = own_server()
    now = [0.0]
    store = RedisStore(server.shard, connect_seconds=5, read_seconds=0.2, breaker=Breaker(clock=lambda: now[0]))
    with closing(store):
        store.add("home", 1)
        assert store.read("w", ["home"]) == [Stored(1, "")]
        server.freeze()
        with pytest.raises(StoreUnavailableError, match="Timeout"):
            store.read("w", ["home"])
        for call in (lambda: store.read("w", ["home"]), lambda: store.add("home", 1)) * 100:
            with pytest.raises(StoreUnavailableError, match="not asked again"):
                call()
        server.thaw()
        now[0] += 10
        wait_until(store.ping, "the server to wake up")
        assert store.server.breaker.state == "closed"
        assert store.read("w", ["home"]) == [Stored(1, "")]


def test_a_shard_that_is_down_is_found_to_be_back_by_a_probe_and_not_by_a_read(
    own_server: Callable[..., Server],
) -> None:
    server = own_server()
    now = [0.0]
    store = RedisStore(server.shard, connect_seconds=5, read_seconds=0.2, breaker=Breaker(clock=lambda: now[0]))
    with closing(store):
        assert store.read("w", ["home"]) == [Stored(0, "")]
        assert not store.is_down("home")
        server.freeze()
        with pytest.raises(StoreUnavailableError, match="Timeout"):
            store.read("w", ["home"])
        server.thaw()
        store.probe()
        assert store.is_down("home"), "probed before it was time"

        def probed() -> bool:
            now[0] += 10
            store.probe()
            return not store.is_down("home")

        wait_until(probed, "the server to wake up")
        assert store.read("w", ["home"]) == [Stored(0, "")]


def test_a_flush_does_not_wait_for_a_shard_that_it_knows_to_be_away(proxy: LossyProxy) -> None:
    with closing(patient(proxy.shard, Breaker(probe_seconds=3600))) as store:
        assert store.apply("w", [home_batch(1)]) == [Applied(HOME, "1:a")]
        proxy.lose_reply_to = b"HMGET"
        with pytest.raises(StoreUnavailableError):
            store.watermarks("w", [HOME])
        proxy.requests = b""
        assert store.persist(5) is False
        assert proxy.requests == b""
        proxy.lose_reply_to = b"PING"
        with pytest.raises(StoreUnavailableError, match="no answer for"):
            store.watermarks("w", [HOME])
        assert proxy.requests == pack(b"PING")
        proxy.lose_reply_to = None
        assert store.watermarks("w", [HOME]) == ["1:a"]
        assert store.persist(5) is True


def test_a_reply_that_came_too_late_is_never_taken_for_that_of_another_call(own_server: Callable[..., Server]) -> None:
    server = own_server()
    store = RedisStore(server.shard, connect_seconds=5, read_seconds=0.05, breaker=Breaker(probe_seconds=0.0))
    with closing(store):
        store.add("home", 7)
        store.add("other", 1)
        for _ in range(5):
            assert store.read("w", ["home"]) == [Stored(7, "")]
            server.freeze()
            with pytest.raises(StoreUnavailableError):
                store.read("w", ["home"])
            server.thaw()
            wait_until(store.ping, "the server to wake up")
            assert store.read("w", ["other"]) == [Stored(1, "")]


def test_a_restarted_server_is_used_again_without_one_failing_read(own_server: Callable[..., Server]) -> None:
    server = own_server()
    with closing(patient(server.shard)) as store:
        store.apply("writer", [home_batch(1)])
        assert store.read("writer", ["home"]) == [Stored(1, "1:a")]
        server.kill()
        server.start()
        assert store.read("writer", ["home"]) == [Stored(1, "1:a")]
        assert store.apply("writer", [home_batch(2)]) == [Applied(HOME, "2:a")]


def test_a_server_busy_with_a_script_is_unavailable(own_server: Callable[..., Server]) -> None:
    server = own_server("--busy-reply-threshold", "1")
    with closing(patient(server.shard)) as store:
        store.add("home", 1)
        loop = Thread(target=server.call, args=("EVAL", "while true do end", 0))
        loop.start()
        wait_until(lambda: "BUSY" in str(server.call("GET", "x")), "the server to be busy")
        with pytest.raises(StoreUnavailableError, match="BUSY"):
            store.read("w", ["home"])
        assert store.server.breaker.state == "open"
        server.call("SCRIPT", "KILL")
        loop.join()


# Refusals


def test_a_wrong_password_is_refused_and_never_shown(own_server: Callable[..., Server]) -> None:
    server = own_server("--requirepass", "right-secret")
    for user in ("", "somebody"):
        shard = Shard(name="shard", url=f"redis://{user}:wrong-secret@127.0.0.1:{server.port}")
        with closing(patient(shard)) as store:
            with pytest.raises(StoreRefusedError, match="shard: ") as caught:
                store.read("w", ["home"])
            (applied,) = store.apply("writer", [home_batch(1)])
            assert applied.error is not None
            assert "secret" not in f"{caught.value} {applied} {store!r} {vars(store)}"
            assert store.server.breaker.state == "closed"
    with closing(patient(Shard(name="shard", url=f"redis://:right-secret@127.0.0.1:{server.port}"))) as store:
        assert store.add("home", 1) == 1


def test_a_replica_refuses_to_count(own_server: Callable[..., Server]) -> None:
    server = own_server("--replicaof", f"127.0.0.1 {free_port()}")
    with closing(patient(server.shard)) as store:
        with pytest.raises(StoreRefusedError, match="READONLY"):
            store.add("home", 1)
        (applied,) = store.apply("writer", [home_batch(1)])
        assert applied.error is not None
        assert "READONLY" in applied.error


# Processes and shards


def test_a_forked_child_opens_connections_of_its_own(server: Server) -> None:
    script = f"""
import os
from visit_counter.config.settings import Shard
from visit_counter.shards.contract import Batch, Stored
from visit_counter.shards.redis.store import RedisStore
from visit_counter.model.visits import Tally
store = RedisStore(Shard(name="s", url="redis://127.0.0.1:{server.port}"), connect_seconds=10, read_seconds=10)
def work(writer):
    for number in range(200):
        old, new = (f"{{number}}:a" if number else "", f"{{number + 1}}:a")
        assert store.apply(writer, [Batch({HOME}, old, new, Tally({{"home": 1}}))])[0].watermark == new
        assert store.read(writer, ["home"])[0].watermark == new
    assert store.persist(10) is True
store.add("home", 1)
store.apply("before", [Batch({HOME}, "", "1:a", Tally({{"home": 1}}))])
child = os.fork()
work("child" if child == 0 else "parent")
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.read("parent", ["home"]) == [Stored(402, "200:a")]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_new_store_opens_nothing(proxy: LossyProxy) -> None:
    ShardedStore([RedisStore(proxy.shard)]).close()
    assert proxy.connections == 0


def test_of_several_shards_one_that_is_down_fails_its_own_pages_alone(server: Server) -> None:
    gone = RedisStore(Shard(name="gone", url=f"redis://127.0.0.1:{free_port()}"))
    stores: list[Store] = [patient(server.shard), gone, MemoryStore()]
    with closing(ShardedStore(stores)) as store:
        names = {partition: store.shard_of(partition) for partition in range(200)}
        assert set(names.values()) == {each.name for each in stores}
        results = store.apply("writer", [Batch(partition, "", "1:a", Tally({"x": 1})) for partition in names])
        assert [(result.partition, result.error is None) for result in results] == [
            (partition, name != "gone") for partition, name in names.items()
        ]
        assert all(result.watermark == ("1:a" if result.error is None else "") for result in results)
        pages = [f"page/{number}" for number in range(50)]
        with pytest.raises(StoreError, match="gone"):
            store.read("writer", pages)
        there = [page for page in pages if store.shard_name(page) != "gone"]
        assert [stored.visits for stored in store.read("writer", there)] == [0] * len(there)
        assert store.ping() is False
        assert store.ping_each() == {stores[0].name: True, "gone": False, "in_memory": True}
        assert store.persist(1) is False
        assert {page for page in pages if store.is_down(page)} == set(pages) - set(there)
        assert {store.owner(page) for page in there} == {stores[0].name, "in_memory"}
        found, errors = store.watermarks_of_reachable("writer", list(names))
        assert found == {partition: "1:a" for partition, name in names.items() if name != "gone"}
        assert [str(error).startswith("gone: ") for error in errors] == [True]


# What a server says about itself


def test_a_server_that_keeps_our_promises_is_described_without_a_warning(store: RedisStore) -> None:
    said = store.server.describe()
    assert (said.server, said.role, said.appendonly, said.appendfsync) == ("valkey", "master", "yes", "always")
    assert said.maxmemory_policy == "noeviction"
    assert said.version[0].isdigit()
    assert said.memory_bytes > 0
    assert said.warnings == ()


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (("--appendonly", "no"), "appendonly is no"),
        (("--appendfsync", "no"), "appendfsync is no"),
        (("--maxmemory-policy", "allkeys-lru"), "maxmemory-policy is allkeys-lru"),
        (("--replicaof", "127.0.0.1 1"), "it is a replica"),
    ],
)
def test_a_setting_that_breaks_our_promises_is_warned_of(
    own_server: Callable[..., Server], options: tuple[str, ...], warning: str
) -> None:
    with closing(patient(own_server(*options).shard)) as store:
        (said,) = store.server.describe().warnings
    assert said.startswith(warning)


def test_a_user_who_may_not_read_the_settings_is_told_what_else_there_is(server: Server) -> None:
    server.call("ACL", "SETUSER", "narrow", "on", ">secret", "~visits:*", "+info")
    with closing(patient(Shard(name="shard", url=f"redis://narrow:secret@127.0.0.1:{server.port}"))) as store:
        said = store.server.describe()
    assert (said.appendonly, said.appendfsync, said.warnings) == ("yes", "unknown", ())


def test_a_server_that_is_down_cannot_be_described() -> None:
    store = RedisStore(Shard(name="gone", url=f"redis://127.0.0.1:{free_port()}"))
    with closing(store), pytest.raises(StoreUnavailableError, match="gone"):
        store.server.describe()


# What the log says


@pytest.mark.parametrize("telling", [True, False])
def test_an_outage_is_told_once_when_it_begins_and_once_when_it_ends(
    own_server: Callable[..., Server], caplog: pytest.LogCaptureFixture, telling: bool
) -> None:
    caplog.set_level(logging.INFO)
    server = own_server()
    with closing(patient(server.shard, Breaker(0.01, 0.02))) as store:
        if telling:
            store.report_outages()
        assert store.ping()
        server.kill()
        for _ in range(5):
            for call in (lambda: store.read("w", ["home"]), lambda: store.watermarks("w", [HOME])):
                with pytest.raises(StoreUnavailableError):
                    call()
        assert "no answer for" in store.reason()
        server.start()
        wait_until(store.ping, "the server to be found")
        assert store.read("w", ["home"]) == [Stored(0, "")]
        assert store.reason() == ""
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (2 if telling else 0)
    if telling:
        assert told[0].startswith(f"shard {server.shard.name} is down: ")
        assert told[1].startswith(f"shard {server.shard.name} answers again; it was down for ")
