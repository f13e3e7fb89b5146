"""Makes one call for all threads that ask for the same key at the same time."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


class SingleFlight(Generic[T]):
    """While a call for a key is under way, other threads that ask for that key wait for its result or its error.

    No result is kept afterwards; that is the work of a cache. If the call fills a cache, let it first check that cache
    again: a thread may have missed there just before another call filled it, and come here just after.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[Hashable, Future[T]] = {}

    def do(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return what `call` returns, from this thread's call or from the one already under way; or raise its error."""
        return self.do_all([key], lambda _: {key: call()})[key].result()

    def do_all(self, keys: Iterable[K], call: Callable[[Sequence[K]], Mapping[K, T]]) -> dict[K, Future[T]]:
        """Return a done future for each key: from one call for all keys without a call, or from the calls under way.

        An error of the call is in the futures of its keys; if it is not an Exception, it is raised here as well.
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
        except BaseException as error:  # after any error, the threads that wait must not wait for ever
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
        """Remove the keys before the results are set, so that a later caller starts a new call."""
        with self._lock:
            for key in keys:
                del self._under_way[key]
