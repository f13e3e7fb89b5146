"""The local cache against flask-caching's SimpleCache, in one run."""

from collections.abc import Callable
from itertools import cycle, islice
from time import thread_time

import pytest
from flask_caching.backends.base import BaseCache
from flask_caching.backends.simplecache import SimpleCache

from visit_counter.counting.cache import LocalCache

pytestmark = pytest.mark.no_cover  # tracing would be most of what is measured

ENTRIES = 1000
CALLS = 20_000


def seconds_each(run: Callable[[], object], calls: int) -> float:
    """Return the least of several rounds, so that what else the machine does counts little."""
    return min(timed(run) for _ in range(7)) / calls


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of processor time that one round takes: others may use the machine too."""
    start = thread_time()
    run()
    return thread_time() - start


def get_cost(cache: BaseCache) -> float:
    """Return the seconds of one `get` of a value that is there, as the counter keeps them."""
    keys = [f"blog/article-{number}" for number in range(ENTRIES)]
    for key in keys:
        cache.set(key, (123, "45:0123456789abcdef"))
    asked = list(islice(cycle(keys), CALLS))

    def run() -> None:
        get = cache.get
        for key in asked:
            get(key)

    return seconds_each(run, CALLS)


def set_cost(cache: BaseCache, keys: list[str]) -> float:
    """Return the seconds of one `set`."""

    def run() -> None:
        put = cache.set
        for key in keys:
            put(key, (123, "45:0123456789abcdef"))

    return seconds_each(run, len(keys))


SAME = [f"page/{number % (ENTRIES // 2)}" for number in range(CALLS)]
# Every one new, and more than fit. Few, because the stock cache sorts all its entries for each of them.
NEW = [f"page/{number}" for number in range(2 * ENTRIES)]


@pytest.mark.parametrize(
    ("what", "cost"),
    [
        ("get", get_cost),
        ("set", lambda cache: set_cost(cache, SAME)),
        ("set when full", lambda cache: set_cost(cache, NEW)),
    ],
)
def test_it_costs_at_most_half_of_the_stock_cache(what: str, cost: Callable[[BaseCache], float]) -> None:
    stock, ours = cost(SimpleCache(threshold=ENTRIES)), cost(LocalCache(threshold=ENTRIES))
    print(f"{what:15} SimpleCache {stock * 1e6:8.2f} us   LocalCache {ours * 1e6:6.2f} us   {stock / ours:6.1f} times")
    assert ours <= stock / 2
