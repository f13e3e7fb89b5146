"""One call for many that ask the same at the same time."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

K = TypeVar("K", bound="Hashable")
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
        return self.do_all([key], lambda _: {key: call()})[key].result()

    def do_all(self, keys: Iterable[K], call: Callable[[Sequence[K]], Mapping[K, T]]) -> dict[K, Future[T]]:
        """Return for each key a future that is done: from one call for all keys that nobody calls for yet, or theirs.

        An error of the call is in the futures of its keys; one that is no Exception is raised here as well.
        """
        with self._lock:
            flights = {key: self._under_way.get(key) for key in keys}
            mine: dict[K, Future[T]] = {key: Future() for key, flight in flights.items() if flight is None}
            for key, flight in mine.items():
                self._under_way[key] = flight
        if mine:
            self._fly(mine, call)
        theirs = {key: flight for key, flight in flights.items() if flight is not None}
        for flight in theirs.values():
            flight.exception()  # waits
        return mine | theirs

    def _fly(self, mine: Mapping[K, Future[T]], call: Callable[[Sequence[K]], Mapping[K, T]]) -> None:
        try:
            results = call(list(mine))
        except BaseException as error:  # whatever it was, those who wait must not wait for ever
            self._land(mine)
            for flight in mine.values():
                flight.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._land(mine)
            for key, flight in mine.items():
                flight.set_result(results[key])

    def _land(self, keys: Iterable[Hashable]) -> None:
        """Let the next one who asks call anew, before those who wait are told: what they were told is then old."""
        with self._lock:
            for key in keys:
                del self._under_way[key]
