"""The local cache: exact times on a monotonic clock, bounded, and last known values."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from flask import Flask
from flask_caching import Cache

from tests.support.clock import Clock
from visit_counter.counting.cache import LocalCache


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> LocalCache:
    """Return a cache of three entries, each good for half a second."""
    return LocalCache(threshold=3, ttl_seconds=0.5, clock=clock)


def test_a_value_is_there_until_its_time_is_over_to_the_fraction_of_a_second(cache: LocalCache, clock: Clock) -> None:
    cache.set("home", 1)
    clock.now += 0.4999
    assert (cache.get("home"), cache.has("home")) == (1, True)
    clock.now += 0.0001
    assert (cache.get("home"), cache.has("home")) == (None, False)


@pytest.mark.parametrize(("timeout", "seconds"), [(0.25, 0.25), (2, 2), (timedelta(milliseconds=750), 0.75)])
def test_a_value_may_have_a_time_of_its_own(
    cache: LocalCache, clock: Clock, timeout: float | timedelta, seconds: float
) -> None:
    cache.set("home", 1, timeout)
    clock.now += seconds - 0.001
    assert cache.get("home") == 1
    clock.now += 0.001
    assert cache.get("home") is None


def test_a_timeout_of_zero_never_ends(cache: LocalCache, clock: Clock) -> None:
    cache.set("home", 1, 0)
    clock.now += 1e12
    assert cache.get("home") == 1


def test_peek_returns_the_last_known_value_until_it_makes_room(cache: LocalCache, clock: Clock) -> None:
    cache.set("home", 1)
    clock.now += 3600
    assert (cache.get("home"), cache.peek("home")) == (None, 1)
    for page in "abc":
        cache.set(page, 2)
    assert cache.peek("home") is None


def test_the_entry_set_longest_ago_makes_room_and_no_other(cache: LocalCache) -> None:
    for page in "abc":
        cache.set(page, page)
    cache.set("a", "again")
    cache.set("d", "d")
    assert cache.get_dict(*"abcd") == {"a": "again", "b": None, "c": "c", "d": "d"}


def test_it_never_holds_more_than_its_threshold(clock: Clock) -> None:
    cache = LocalCache(threshold=100, clock=clock)
    for number in range(10_000):
        cache.set(f"page/{number % 1700}", number)
        assert len(cache._entries) <= 100


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_cache_without_room_is_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalCache(threshold=threshold)


def test_values_are_kept_as_they_are_and_not_pickled(cache: LocalCache) -> None:
    value = object()
    cache.set("home", value)
    assert cache.get("home") is value


def test_add_keeps_a_value_only_where_there_is_none(cache: LocalCache, clock: Clock) -> None:
    assert cache.add("home", 1) is True
    assert cache.add("home", 2) is False
    assert cache.get("home") == 1
    clock.now += 1
    assert cache.add("home", 3) is True
    assert cache.get("home") == 3


def test_delete_and_clear_forget_for_good(cache: LocalCache) -> None:
    cache.set_many({"a": 1, "b": 2})
    assert (cache.delete("a"), cache.delete("a")) == (True, False)
    assert cache.delete_many("b", "never") == ["b", "never"]
    assert cache.get_many("a", "b") == [None, None]
    cache.set("c", 3)
    assert cache.clear() is True
    assert (cache.get("c"), cache.peek("c")) == (None, None)


def test_readers_and_writers_in_threads_meet_no_error_and_no_foreign_value() -> None:
    cache = LocalCache(threshold=50)
    barrier = Barrier(8)

    def run(index: int) -> bool:
        barrier.wait()
        for number in range(5000):
            key = f"page/{(number * 7 + index) % 120}"
            if index % 2:
                cache.set(key, key)
                if number % 50 == 0:
                    cache.delete(key)
            elif cache.get(key) not in (None, key) or cache.peek(key) not in (None, key):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))
    assert len(cache._entries) <= 50


def test_flask_caching_makes_it_from_its_import_path_and_settings() -> None:
    app = Flask("test")
    options = {"ttl_seconds": 0.25}
    cache = Cache(
        config={"CACHE_TYPE": "visit_counter.counting.cache.LocalCache", "CACHE_THRESHOLD": 7, "CACHE_OPTIONS": options}
    )
    cache.init_app(app)
    backend = app.extensions["cache"][cache]
    assert isinstance(backend, LocalCache)
    assert (backend._threshold, backend.ttl_seconds) == (7, 0.25)
    with app.app_context():
        cache.set("home", 1)
        assert cache.get("home") == 1


def test_flask_cachings_own_default_timeout_is_obeyed() -> None:
    app = Flask("test")
    cache = Cache(app, config={"CACHE_TYPE": "visit_counter.counting.cache.LocalCache", "CACHE_DEFAULT_TIMEOUT": 17})
    backend = app.extensions["cache"][cache]
    assert (backend._threshold, backend.ttl_seconds) == (500, 17)


def test_with_a_time_of_0_no_value_stays_fresh_and_each_is_kept_as_the_last_known(clock: Clock) -> None:
    cache = LocalCache(ttl_seconds=0, clock=clock)
    cache.set("a", 1)
    assert (cache.get("a"), cache.peek("a")) == (None, 1)
