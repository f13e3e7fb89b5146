"""The oracle: what was acknowledged, what is uncertain, and whether an answer can be right.

    acknowledged <= count <= acknowledged + uncertain

A visit is uncertain from the moment it is sent until its answer arrives; one that was answered with a refusal is not.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class BrokenError(AssertionError):
    """A promise was broken."""


class Oracle:
    """Visits per page of one host. `durable`: an acknowledged visit outlives a power loss."""

    def __init__(self, durable: bool = True) -> None:
        self.lost_power = False
        self.refusals = 0
        self._durable = durable
        self._acknowledged: Counter[str] = Counter()
        self._uncertain: Counter[str] = Counter()
        self._safe: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.mistakes: list[str] = []  # what `judge` has found

    def acknowledged(self, page: str) -> int:
        """Return the visits that must be counted."""
        return self._acknowledged[page]

    def highest(self, page: str) -> int:
        """Return the visits that may be counted."""
        return self._acknowledged[page] + self._uncertain[page]

    def lowest(self, page: str) -> int:
        """Return the least that a reader who asks now must be answered."""
        return max(self._acknowledged[page], self.seen[page])

    @property
    def visits(self) -> int:
        """How many visits were acknowledged, of all pages."""
        return self._acknowledged.total()

    def begin(self, page: str, visits: int) -> None:
        """Visits are being sent."""
        self._uncertain[page] += visits

    def acknowledge(self, page: str, visits: int) -> None:
        """They were answered with success."""
        self._uncertain[page] -= visits
        self._acknowledged[page] += visits

    def refused(self, page: str, visits: int, *, surely: bool = True) -> None:
        """They were refused; not `surely` where the disk took them and then failed to sync."""
        self.refusals += 1
        if surely:
            self._uncertain[page] -= visits

    def saw(self, page: str, visits: int, lowest: int, *, strict: bool = True) -> None:
        """A reader was answered; `lowest`: what it had to see when it asked. Raises BrokenError.

        Not `strict` where others count the page too.
        """
        if visits < lowest:
            raise BrokenError(f"{page}: {visits} answered where {lowest} were acknowledged or answered before")
        if strict and visits > self.highest(page):
            raise BrokenError(f"{page}: {visits} answered where {self.highest(page)} are possible")
        self.seen[page] = max(self.seen[page], visits)

    def judge(self, page: str, visits: int, lowest: int) -> None:
        """Do what `saw` does, but keep a broken promise in `mistakes` instead of raising it."""
        try:
            self.saw(page, visits, lowest)
        except BrokenError as error:
            self.mistakes.append(str(error))

    def check_at_most(self, page: str, visits: int) -> None:
        """A part of the count was answered. Raises BrokenError."""
        if visits > self.highest(page):
            raise BrokenError(f"{page}: {visits} pending where {self.highest(page)} are possible")

    def pages(self) -> list[str]:
        """Return every page that was visited."""
        return list(self._acknowledged.keys() | self._uncertain.keys())

    def compare(self, stored: Callable[[str], int]) -> tuple[int, int]:
        """Return the visits (lost, doubled) where `stored` says what the shards hold of a page in the end."""
        lost = doubled = 0
        for page in self.pages():
            count = stored(page)
            lost += max(0, self.acknowledged(page) - count)
            doubled += max(0, count - self.highest(page))
        return lost, doubled

    def settle(self, page: str, visits: int) -> None:
        """Nothing is under way any more: what is stored is the truth, and must stay it."""
        self._acknowledged[page], self._uncertain[page] = visits, 0

    def synced(self, visits: Mapping[str, int]) -> None:
        """Acknowledged visits are on the disk: they outlive a power loss."""
        self._safe.update(visits)

    def power_lost(self) -> None:
        """What was not durable may be gone; readers start anew."""
        self.lost_power = True
        self.seen.clear()
        if not self._durable:
            for page, visits in self._acknowledged.items():
                self._uncertain[page] += visits - self._safe[page]
            self._acknowledged = Counter(self._safe)
