"""What the workers of a service tell each other of their connections, so that none keeps clearly more than the others.

A connection that is kept stays with the worker that accepted it: after one worker was killed, the others would have
all of them for good, and the one that took its place would have none. So each worker writes down once a second how many
of its connections were in use during that second. One that has clearly more than the mean closes some, each
after an answer that says `Connection: close`, and leaves new connections to the others.
"""

from __future__ import annotations

import mmap

# A worker that has written nothing for so long is gone, or does not get on: nobody leaves connections to it.
_SILENT_SECONDS = 2.5
# How many times in a row a worker must have more than its share: the numbers of single seconds vary by chance.
_TIMES = 3
_PLACES = 256
_BYTES = 16  # of a place: two numbers


class Board:
    """How many connections each worker has in use. Make it before the workers are forked: they share the memory."""

    def __init__(self) -> None:
        # For each place the time of writing, in monotonic seconds, which all processes share; and the number.
        self._cells = memoryview(mmap.mmap(-1, _PLACES * _BYTES)).cast("d")

    def write(self, worker: int, in_use: int, now: float) -> None:
        """Tell how many connections a worker has in use. Workers are numbered from 1 by gunicorn's master."""
        at = worker % _PLACES * 2
        self._cells[at], self._cells[at + 1] = now, in_use

    def erase(self, worker: int) -> None:
        """Tell that a worker takes no more connections."""
        self.write(worker, 0, 0.0)

    def others(self, worker: int, now: float) -> list[int]:
        """Return the numbers of all other workers that have written lately."""
        mine = worker % _PLACES
        cells = self._cells.tolist()
        places = zip(cells[::2], cells[1::2], strict=True)
        return [int(number) for at, (when, number) in enumerate(places) if at != mine and now - when < _SILENT_SECONDS]


class Share:
    """Whether one worker has more than its share of the connections; asked once a second."""

    def __init__(self) -> None:
        self.surplus = 0  # how many connections are to be closed
        self._times = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether new connections are left to the others."""
        return self._times > 0

    def update(self, in_use: int, others: list[int]) -> None:
        """Compare: a tenth more than the mean, and two connections, is clearly more; half of that is to be closed."""
        mean = (in_use + sum(others)) / (1 + len(others))
        excess = in_use - mean
        self.surplus = 0
        if excess < max(2.0, mean / 10):
            self._times = 0
            return
        self._times += 1
        if self._times % _TIMES == 0:
            self.surplus = int(excess / 2)
