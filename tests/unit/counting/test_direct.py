"""The counter of the first three stages."""

from __future__ import annotations

import threading

import pytest

from tests.support.clock import Clock
from tests.unit.counting.test_counter import Watched
from visit_counter.counting.cache import LocalCache
from visit_counter.counting.direct import DirectCounter
from visit_counter.errors import CountUnknownError
from visit_counter.model.answers import Answer, Ask
from visit_counter.shards.memory import MemoryStore


def test_in_memory_every_visit_is_counted_at_once_and_nothing_waits() -> None:
    counter = DirectCounter(MemoryStore(), via="in_memory", waits=False)
    assert counter.record("a", 2) == Answer(2, "in_memory")
    assert counter.answer([Ask(True, "a"), Ask(False, "a"), Ask(False, "b")]) == [
        Answer(3, "in_memory"),
        Answer(3, "in_memory"),
        Answer(0, "in_memory"),
    ]


def test_without_a_cache_every_read_asks_the_store() -> None:
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis")
    counter.record("a")
    assert [counter.count("a"), counter.count("a")] == [Answer(1, "redis")] * 2
    assert store.reads == 2
    assert counter.answer([Ask(True, "a"), Ask(False, "a")]) == [None, None]


def test_with_a_cache_a_read_is_answered_from_it_until_its_time_is_over() -> None:
    clock = Clock()
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis", cache=LocalCache(ttl_seconds=5.0, clock=clock))
    assert counter.record("a") == Answer(1, "redis")
    assert counter.count("a") == Answer(1, "in_memory")
    assert counter.answer([Ask(False, "a"), Ask(True, "a")]) == [Answer(1, "in_memory"), None]
    clock.now += 5
    assert counter.count("a") == Answer(1, "redis")
    assert store.reads == 1


def test_a_reader_never_sees_less_than_its_own_visit_was_told() -> None:
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis", cache=LocalCache(ttl_seconds=5.0, clock=Clock()))
    read = threading.Event()
    visited = threading.Event()

    def hold() -> None:
        read.set()
        visited.wait()

    store.after = hold
    reader = threading.Thread(target=lambda: counter.count("a"))
    reader.start()
    read.wait()
    # The reader has read 0 from the store and has not cached it yet.
    assert counter.record("a") == Answer(1, "redis")
    visited.set()
    reader.join()
    assert counter.count("a").visits == 1


def test_after_a_store_has_lost_data_reads_say_what_it_says_to_visits() -> None:
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis", cache=LocalCache(ttl_seconds=5.0, clock=Clock()))
    assert counter.record("a", 1000) == Answer(1000, "redis")
    store._counts["a"] = 199
    assert counter.record("a") == Answer(200, "redis")
    assert counter.count("a") == Answer(200, "in_memory")


def test_of_two_visits_at_once_the_later_count_is_read_whichever_is_answered_last() -> None:
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis", cache=LocalCache(ttl_seconds=5.0, clock=Clock()))
    counted, other = threading.Event(), threading.Event()
    add = store.add

    def held(page: str, visits: int) -> int:
        count = add(page, visits)
        if count == 1:
            counted.set()
            other.wait()
        return count

    store.add = held  # type: ignore[method-assign]  # for this test
    first = threading.Thread(target=lambda: counter.record("a"))
    first.start()
    counted.wait()
    assert counter.record("a") == Answer(2, "redis")
    other.set()
    first.join()
    assert counter.count("a") == Answer(2, "in_memory")
    assert counter.record("a") == Answer(3, "redis")
    assert counter.count("a") == Answer(3, "in_memory")


def test_a_store_that_is_down_gives_the_last_known_count_or_says_that_it_is_unknown() -> None:
    clock = Clock()
    store = Watched("redis_7070")
    counter = DirectCounter(store, via="redis", cache=LocalCache(ttl_seconds=5.0, clock=clock))
    counter.record("a")
    clock.now += 10
    store.down = True
    assert counter.count("a") == Answer(1, "redis")
    with pytest.raises(CountUnknownError):
        counter.count("b")
