"""A shard that answers what cannot be is a failing shard: unavailable, its connection closed, and nothing raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.fake_shards import GARBAGE, FakeShard
from tests.support.redis_servers import Server
from tests.support.servers import wait_until
from visit_counter.config.settings import Shard
from visit_counter.errors import RebalanceError, StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.model.visits import Tally
from visit_counter.shards.check import check_shard
from visit_counter.shards.cluster.store import ClusterStore
from visit_counter.shards.contract import Batch, Store
from visit_counter.shards.factory import make_store
from visit_counter.shards.rebalance.rebalance import Rebalance
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.ring import PARTITIONS, partition_of
from visit_counter.shards.router import ShardedStore

pytestmark = pytest.mark.quick

HOME = partition_of("home")
BATCH = Batch(HOME, "", "1:a", Tally({"home": 1}))

CALLS: dict[str, Callable[[RedisStore | ClusterStore], object]] = {
    "read": lambda store: store.read("w", ["home", "other"]),
    "add": lambda store: store.add("home", 1),
    "watermarks": lambda store: store.watermarks("w", [HOME, 1]),
    "read_shard_map": lambda store: store.read_shard_map(),
    "offer_shard_map": lambda store: store.offer_shard_map("1 {}"),
    "read_identity": lambda store: store.read_identity(),
    "apply": lambda store: store.apply("w", [BATCH]),
    "persist": lambda store: store.persist(0.1),
    "ping": lambda store: store.ping(),
    "status": lambda store: store.status("w", range(PARTITIONS), strays=True),
}


@pytest.fixture
def fake() -> Iterator[FakeShard]:
    """Return a shard that answers garbage."""
    with closing(FakeShard(lambda _: b"")) as made:
        yield made


def impatient(shard: Shard) -> RedisStore | ClusterStore:
    """Return a store that does not wait long for the rest of a reply."""
    return make_store(shard, connect_seconds=5, read_seconds=0.1, add_seconds=0.1, apply_seconds=0.1)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
def test_no_garbage_raises_anything_but_the_errors_of_a_store(
    fake: FakeShard, scheme: str, call: Callable[[Store], object]
) -> None:
    path = "/main" if scheme == "redis+sentinel" else ""
    for garbage in GARBAGE.values():
        fake.reply = lambda _, garbage=garbage: garbage  # type: ignore[misc]  # mypy cannot infer it
        with closing(impatient(Shard("fake", f"{scheme}://127.0.0.1:{fake.port}{path}"))) as store:
            failed: list[StoreError] = []
            try:
                call(store)
            except StoreError as error:
                failed.append(error)
            assert all(len(str(error)) < 300 for error in failed)


@pytest.mark.parametrize("garbage", [GARBAGE["number"], GARBAGE["http"], GARBAGE["no number"], GARBAGE["deep"]])
def test_who_answers_garbage_is_down_and_its_connection_is_closed(fake: FakeShard, garbage: bytes) -> None:
    fake.reply = lambda _: garbage
    with closing(impatient(fake.shard)) as store:
        with pytest.raises(StoreUnavailableError, match=r"cannot be|Protocol Error"):
            store.read("w", ["home"])
        assert store.is_down("home")
        assert "cannot be" in store.reason() or "Protocol Error" in store.reason()
        wait_until(lambda: fake.closed == 1, "the connection to be closed")


def test_a_script_that_returns_no_text_did_not_apply_the_batch(fake: FakeShard) -> None:
    fake.reply = lambda data: b"$40\r\n" + b"0" * 40 + b"\r\n" if b"SCRIPT" in data else b":1\r\n"
    with closing(impatient(fake.shard)) as store:
        (applied,) = store.apply("w", [BATCH])
    assert applied.error is not None
    assert "cannot be" in applied.error


def test_the_start_tells_garbage_from_an_outage(fake: FakeShard) -> None:
    for garbage in GARBAGE.values():
        fake.reply = lambda _, garbage=garbage: garbage  # type: ignore[misc]  # mypy cannot infer it
        said: list[str | None] = []
        try:
            said.append(check_shard(fake.shard))
        except StoreRefusedError as error:
            said.append(error.reason)
        assert said[0]


def test_a_rebalance_over_garbage_is_one_message(fake: FakeShard) -> None:
    for garbage in GARBAGE.values():
        fake.reply = lambda _, garbage=garbage: garbage  # type: ignore[misc]  # mypy cannot infer it
        with (
            closing(RedisStore(fake.shard, read_seconds=0.1, apply_seconds=0.1)) as store,
            pytest.raises(RebalanceError),
        ):
            Rebalance([store.name], {store.name: store}, lock_seconds=0.05).run()


def test_a_shard_map_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with closing(Server(tmp_path)) as server:
        for text in ("x", "1", "x {}", "1 []", '1 {"id":1}', "\xff", "9" * 5000 + " {}", '1 {"shards":[1],"next":{}}'):
            server.call("SET", "visits:{0}:topology", text)
            store = ShardedStore([RedisStore(server.shard, connect_seconds=5, read_seconds=5)], shared=True)
            with closing(store), pytest.raises(StoreRefusedError, match="cannot be read"):
                store.read("w", ["home"])
