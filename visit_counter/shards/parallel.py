"""Several calls side by side, a thread for each: shards and nodes that are down cost their time-out once."""

from __future__ import annotations

from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run the calls side by side, the last one in this thread; return their results, or raise the first error."""
    results: dict[int, T] = {}
    errors: dict[int, Exception] = {}

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors[index] = error

    threads = [Thread(target=run, args=(index,), daemon=True) for index in range(len(calls) - 1)]
    for thread in threads:
        thread.start()
    if calls:
        run(len(calls) - 1)
    for thread in threads:
        thread.join()
    for index in sorted(errors):
        raise errors[index]
    return [results[index] for index in range(len(calls))]


def group_by(items: Iterable[T], owner: Callable[[T], str]) -> dict[str, list[T]]:
    """Return the items of each owner, in their order."""
    owned: dict[str, list[T]] = {}
    for item in items:
        owned.setdefault(owner(item), []).append(item)
    return owned


def spread(items: Sequence[T], owner: Callable[[T], str], call: Callable[[str, Sequence[T]], Sequence[R]]) -> list[R]:
    """Call each owner with its items, side by side, and put the results into the order of the items."""
    places = group_by(range(len(items)), lambda place: owner(items[place]))
    answers = in_parallel([partial(call, name, [items[place] for place in mine]) for name, mine in places.items()])
    results: dict[int, R] = {}
    for mine, answer in zip(places.values(), answers, strict=True):
        results.update(zip(mine, answer, strict=True))
    return [results[place] for place in range(len(items))]
