"""One call for many that ask the same at the same time."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """While a call for a key is under way, others for that key wait for its result or its error.

    Nothing is remembered afterwards; that is a cache's work. After a result has been put into a cache, look there
    again inside the call: a thread may have missed in the cache just before, and come here just after.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[Hashable, Future[T]] = {}

    def do(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return what `call` returns, from this thread's call or from the one already under way; or raise its error."""
        with self._lock:
            flight = self._under_way.get(key)
            mine = flight is None
            if flight is None:
                flight = self._under_way[key] = Future()
        if mine:
            self._fly(key, flight, call)
        return flight.result()

    def _fly(self, key: Hashable, flight: Future[T], call: Callable[[], T]) -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - whatever it was, those who wait must not wait for ever
            self._land(key)
            flight.set_exception(error)
        else:
            self._land(key)
            flight.set_result(result)

    def _land(self, key: Hashable) -> None:
        """Let the next one who asks call anew, before those who wait are told: what they were told is then old."""
        with self._lock:
            del self._under_way[key]
