"""Several calls side by side, a thread for each: shards and nodes that are down cost their time-out once."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


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
