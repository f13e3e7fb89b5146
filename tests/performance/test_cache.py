"""The local cache against flask-caching's SimpleCache, in one run."""

from collections.abc import Callable
from time import thread_time

import pytest
from flask_caching.backends.base import BaseCache
from flask_caching.backends.simplecache import SimpleCache

from visit_counter.counting.cache import LocalCache

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("uncovered")]

ENTRIES = 1000
CALLS = 5000
ROUNDS = 15

Keys = list[str]


def get_seconds(cache: BaseCache, keys: Keys) -> float:
    """Return the processor time of one `get` for each key: others may use the machine too."""
    get = cache.get
    start = thread_time()
    for key in keys:
        get(key)
    return thread_time() - start


def set_seconds(cache: BaseCache, keys: Keys) -> float:
    """Return the processor time of one `set` for each key."""
    put = cache.set
    start = thread_time()
    for key in keys:
        put(key, (123, "45:0123456789abcdef"))
    return thread_time() - start


SAME = [f"page/{number % (ENTRIES // 2)}" for number in range(CALLS)]
# Every one new, and more than fit. Few, because the stock cache sorts all its entries for each of them.
NEW = [f"page/{number}" for number in range(ENTRIES + 300)]


@pytest.mark.parametrize(
    ("measure", "keys"),
    [
        pytest.param(get_seconds, SAME, id="get"),
        pytest.param(set_seconds, SAME, id="set"),
        pytest.param(set_seconds, NEW, id="set when full"),
    ],
)
def test_it_costs_at_most_half_of_the_stock_cache(measure: Callable[[BaseCache, Keys], float], keys: Keys) -> None:
    caches = SimpleCache(threshold=ENTRIES), LocalCache(threshold=ENTRIES)
    for cache in caches:
        set_seconds(cache, keys)
    # In turn, so that both meet the same machine; the least of each, so that what else it does counts little.
    rounds = [[measure(cache, keys) / len(keys) for cache in caches] for _ in range(ROUNDS)]
    stock, ours = (min(column) for column in zip(*rounds, strict=True))
    print(f"SimpleCache {stock * 1e6:8.2f} us   LocalCache {ours * 1e6:6.2f} us   {stock / ours:6.1f} times")
    assert ours <= stock / 2
