"""The shard map that shards keep, and how a host works by it; shards in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from visit_counter.errors import (
    PartitionMovedError,
    ShardMapError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from visit_counter.shards.contract import Stored
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.rebalance.moving import Place
from visit_counter.shards.ring import PARTITIONS, Ring, partition_of
from visit_counter.shards.router import ShardedStore
from visit_counter.shards.shard_map import ShardMap, newest, public_url, version_of

AB = ShardMap(3, {"a": "redis://a:1", "b": "redis://b:1"}, {"c": "redis://c:1"}, "id")

if TYPE_CHECKING:
    from collections.abc import Sequence


class Down(MemoryStore):
    """A store that does not answer until `back` is set."""

    back = False

    def read_shard_map(self) -> str:
        if not self.back:
            raise StoreUnavailableError(self.name, "no answer")
        return super().read_shard_map()


class Gone(MemoryStore):
    """A store whose partitions have all moved to the shard named `to`."""

    to = "b"

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:  # noqa: ARG002 - the contract's arguments
        raise PartitionMovedError(self.name, {partition_of(page): self.to for page in pages})


def kept(*stores: MemoryStore) -> list[str]:
    return [store.read_shard_map() for store in stores]


def test_a_shard_map_comes_back_as_it_was_written() -> None:
    assert ShardMap.from_text(AB.to_text()) == AB
    assert version_of(AB.to_text()) == 3
    assert version_of("") == 0
    assert AB.everyone == {"a": "redis://a:1", "b": "redis://b:1", "c": "redis://c:1"}


@pytest.mark.parametrize("text", ["3", "3 {}", "x {}", "3 []", '3 {"shards":{},"next":{}}', "\xff"])
def test_a_text_that_is_no_shard_map_is_refused(text: str) -> None:
    with pytest.raises(ShardMapError, match="cannot be read"):
        ShardMap.from_text(text)


def test_counts_in_another_number_of_partitions_are_refused() -> None:
    with pytest.raises(ShardMapError, match="512 partitions; this version uses 4096"):
        ShardMap.from_text(AB.to_text().replace("4096", "512"))


def test_the_newest_shard_map_counts_and_shards_without_one_say_nothing() -> None:
    older = ShardMap(2, {"a": "redis://a:1"}, {}, "id")
    assert newest({"a": older.to_text(), "b": AB.to_text(), "c": ""}) == AB
    assert newest({"a": "", "b": ""}) is None


def test_shard_maps_of_one_version_that_differ_are_refused() -> None:
    other = ShardMap(3, {"a": "redis://a:1"}, {}, "id")
    with pytest.raises(ShardMapError, match="a and b disagree about the shards: a, b, or a"):
        newest({"a": AB.to_text(), "b": other.to_text()})


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("redis://u:p%40@h:1/2", "redis://h:1/2"),
        ("rediss://h:1?ssl_ca_certs=x", "rediss://h:1"),
        ("redis+sentinel://:p@h:1,i:2/main?sentinel_password=s", "redis+sentinel://h:1,i:2/main"),
    ],
)
def test_a_kept_address_has_no_password_and_no_options(url: str, public: str) -> None:
    assert public_url(url) == public


@pytest.mark.parametrize("place", [Place(), Place("moving", "b", "run"), Place("moved", "b")])
def test_a_sign_comes_back_as_it_was_written(place: Place) -> None:
    assert Place.from_bytes(place.to_bytes()) == place


@pytest.mark.parametrize("text", [b"hello", b"moved", b"moving a b c", b"\xff"])
def test_a_string_that_is_no_sign_of_ours_is_known(text: bytes) -> None:
    assert Place.from_bytes(text).kind == "?"


def test_the_first_call_writes_the_shard_map_into_empty_shards() -> None:
    stores = [MemoryStore("a"), MemoryStore("b")]
    store = ShardedStore(stores, shared=True)
    assert kept(*stores) == ["", ""]
    store.add("home", 1)
    [text] = set(kept(*stores))
    assert ShardMap.from_text(text).shards.keys() == {"a", "b"}


def test_profiles_with_one_shard_keep_no_shard_map() -> None:
    alone = MemoryStore("a")
    store = ShardedStore([alone])
    store.add("home", 1)
    store.refresh_shard_map()
    assert kept(alone) == [""]


def test_a_host_with_a_new_list_works_where_the_counts_are() -> None:
    a, b, c = MemoryStore("a"), MemoryStore("b"), MemoryStore("c")
    ShardedStore([a, b], shared=True).load_shard_map()
    host = ShardedStore([a, b, c], shared=True)
    host.load_shard_map()
    assert [host.shard_of(partition) for partition in range(PARTITIONS)] == list(Ring("ab").owners)
    assert kept(c) == [""]


def test_with_a_shard_down_and_no_shard_map_known_nothing_is_touched() -> None:
    down, other = Down("a"), MemoryStore("b")
    host = ShardedStore([down, other], shared=True)
    with pytest.raises(StoreUnavailableError, match="a: no answer; which shards have the counts is unknown"):
        host.read("w", ["home"])
    assert kept(other) == [""]
    down.back = True
    assert host.read("w", ["home"]) == [Stored(0, "")]


def test_with_a_shard_down_the_shard_map_of_another_is_enough() -> None:
    down, other = Down("a"), MemoryStore("b")
    other.offer_shard_map(ShardMap(1, {"b": ""}, {}, "id").to_text())
    assert ShardedStore([down, other], shared=True).read("w", ["home"]) == [Stored(0, "")]


def test_a_newer_shard_map_is_taken_over_when_it_is_looked_for() -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    host = ShardedStore([a, b], shared=True)
    host.load_shard_map()
    assert host.shard_map is not None
    before = host.layout
    a.offer_shard_map(ShardMap(2, {"a": ""}, {}, host.shard_map.id).to_text())
    host.refresh_shard_map()
    assert {host.shard_of(partition) for partition in range(PARTITIONS)} == {"a"}
    assert host.layout != before


def test_a_server_is_found_under_the_name_it_had() -> None:
    store = MemoryStore("new")
    store.address = "redis://h:1"
    store.offer_shard_map(ShardMap(1, {"old": "redis://h:1"}, {}, "id").to_text())
    assert ShardedStore([store], shared=True).read("w", ["home"]) == [Stored(0, "")]


def test_a_partition_that_has_moved_is_followed_and_remembered() -> None:
    a, b = Gone("a"), MemoryStore("b")
    b.add("home", 5)
    a.offer_shard_map(ShardMap(1, {"a": ""}, {}, "id").to_text())
    host = ShardedStore([a, b], shared=True)
    assert host.read("w", ["home"]) == [Stored(5, "")]
    assert host.shard_name("home") == "b"
    assert host.shard_of((partition_of("home") + 1) % PARTITIONS) == "a"


def test_a_partition_that_has_moved_to_a_shard_not_in_the_list_is_unavailable_and_asked_for_again() -> None:
    a, b = Gone("a"), MemoryStore("b")
    a.to = "c"
    a.offer_shard_map(ShardMap(1, {"a": ""}, {}, "id").to_text())
    host = ShardedStore([a, b], shared=True)
    with pytest.raises(StoreUnavailableError, match="c: it has partitions of these counts"):
        host.read("w", ["home"])
    assert host.shard_name("home") == "a"


def test_signs_that_lead_in_a_circle_end_in_an_error() -> None:
    a, b = Gone("a"), Gone("b")
    b.to = "a"
    with pytest.raises(StoreError, match="is being moved"):
        ShardedStore([a, b], shared=True).read("w", ["home"])


def test_shards_that_disagree_are_not_used() -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    ShardedStore([a], shared=True).load_shard_map()
    ShardedStore([b], shared=True).load_shard_map()
    with pytest.raises(StoreRefusedError, match="different installations"):
        ShardedStore([a, b], shared=True).add("home", 1)
