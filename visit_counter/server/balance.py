"""Balances the connections among the workers of a service, so that no worker keeps clearly more than the others.

A kept connection stays with the worker that accepted it: if one worker was killed, the others would keep all the
connections for good, and the worker that took its place would have none. So each worker writes down once a second how
many of its connections were in use during that second. A worker with clearly more than the mean closes some of them,
each after an answer with `Connection: close`, and leaves new connections to the others.
"""

from __future__ import annotations

import mmap

# A worker that has written nothing for so long has ended or hangs: the others leave no connections to it.
_SILENT_SECONDS = 2.5
# How many times in a row a worker must have more than its share: the numbers of single seconds vary by chance.
_TIMES = 3
_PLACES = 256
_BYTES = 16  # the size of a place, which holds two numbers


class Board:
    """How many connections each worker has in use. Make it before the workers are forked: they share the memory."""

    def __init__(self) -> None:
        # Each place holds the time of writing, by the monotonic clock that all processes share, and the number.
        self._cells = memoryview(mmap.mmap(-1, _PLACES * _BYTES)).cast("d")

    def write(self, worker: int, in_use: int, now: float) -> None:
        """Write how many connections a worker has in use. gunicorn's master numbers the workers from 1."""
        at = worker % _PLACES * 2
        self._cells[at], self._cells[at + 1] = now, in_use

    def erase(self, worker: int) -> None:
        """Write that a worker takes no more connections."""
        self.write(worker, 0, 0.0)

    def others(self, worker: int, now: float) -> list[int]:
        """Return the number of connections of each other worker that has written lately."""
        mine = worker % _PLACES
        cells = self._cells.tolist()
        places = zip(cells[::2], cells[1::2], strict=True)
        return [int(number) for at, (when, number) in enumerate(places) if at != mine and now - when < _SILENT_SECONDS]


class Share:
    """Whether one worker has more than its share of the connections; asked once a second."""

    def __init__(self) -> None:
        self.surplus = 0  # how many connections the worker should close
        self._times = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether this worker should leave new connections to the others."""
        return self._times > 0

    def update(self, in_use: int, others: list[int]) -> None:
        """Compare with the mean. A tenth above it, and at least two connections, is too many; close half of these."""
        mean = (in_use + sum(others)) / (1 + len(others))
        excess = in_use - mean
        self.surplus = 0
        if excess < max(2.0, mean / 10):
            self._times = 0
            return
        self._times += 1
        if self._times % _TIMES == 0:
            self.surplus = int(excess / 2)
