"""Which replicas a shard has had."""

from __future__ import annotations

from visit_counter.shards.redis.replicas import Replica, Replicas, replicas_of

INFO = """# Replication
role:master
connected_slaves:2
slave0:ip=10.0.0.2,port=7070,state=online,offset=140,lag=0,type=replica
slave1:ip=fd00::3,port=7071,state=wait_bgsave,offset=0,lag=0
slave_read_only:1
master_replid:abc
"""


def test_the_replicas_that_are_connected_are_read_from_what_the_server_says() -> None:
    assert replicas_of(INFO) == ["10.0.0.2:7070", "[fd00::3]:7071"]
    assert replicas_of("role:slave\nslave_repl_offset:1\n") == []


def test_a_replica_that_was_seen_counts_until_it_is_back() -> None:
    seen = Replicas(lambda: 50.0)
    assert seen.see("p", "p", ["a", "b"]) == []
    assert seen.see("p", "p", ["b"]) == ["a"]
    assert seen.known()["a"] == Replica("p", 50.0)
    again = Replicas(lambda: 60.0)
    again.remember(seen.known())
    assert again.see("p", "p", []) == ["a", "b"]
    assert again.known() == {"a": Replica("p", 50.0), "b": Replica("p", 60.0)}
    assert again.see("p", "p", ["a", "b"]) == []
    assert again.known()["a"] == Replica("p")


def test_a_replica_that_a_person_gave_up_counts_again_once_it_is_back() -> None:
    seen = Replicas(lambda: 50.0)
    seen.remember({"a": Replica("p", 5.0, given_up=True)})
    assert seen.see("p", "p", []) == []
    assert seen.see("p", "p", ["a"]) == []
    assert seen.see("p", "p", []) == ["a"]


def test_a_replica_that_was_promoted_is_nobodys_and_the_others_are_its_own() -> None:
    seen = Replicas(lambda: 50.0)
    seen.see("p", "p", ["a", "b"])
    seen.see("q", "q", ["c"])
    assert seen.see("a", "a", []) == ["b"]
    assert seen.known() == {"b": Replica("a", 50.0), "c": Replica("q")}


def test_a_replica_that_follows_another_primary_is_that_ones() -> None:
    seen = Replicas()
    seen.see("p", "p", ["a"])
    seen.see("q", "q", ["a"])
    assert seen.see("p", "p", []) == []
