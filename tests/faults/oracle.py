"""The oracle: what was acknowledged, what is uncertain, and whether an answer can be right.

    acknowledged <= count <= acknowledged + uncertain

A visit is uncertain from the moment it is sent until its answer arrives; one that was answered with a refusal is not.
"""

from __future__ import annotations

from collections import Counter


class Broken(AssertionError):
    """A promise was broken."""


class Oracle:
    """Visits per page of one host. `durable`: an acknowledged visit outlives a power loss."""

    def __init__(self, durable: bool = True) -> None:
        self.lost_power = False
        self._durable = durable
        self._acknowledged: Counter[str] = Counter()
        self._uncertain: Counter[str] = Counter()
        self._safe: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def acknowledged(self, page: str) -> int:
        """Return the visits that must be counted."""
        return self._acknowledged[page]

    def highest(self, page: str) -> int:
        """Return the visits that may be counted."""
        return self._acknowledged[page] + self._uncertain[page]

    def begin(self, page: str, visits: int) -> None:
        """Visits are being sent."""
        self._uncertain[page] += visits

    def acknowledge(self, page: str, visits: int) -> None:
        """They were answered with success."""
        self._uncertain[page] -= visits
        self._acknowledged[page] += visits

    def refused(self, page: str, visits: int, *, surely: bool = True) -> None:
        """They were refused; not `surely` where the disk took them and then failed to sync."""
        if surely:
            self._uncertain[page] -= visits

    def saw(self, page: str, visits: int, lowest: int, *, strict: bool = True, monotonic: bool = True) -> None:
        """A reader was answered; `lowest`: what was acknowledged when it asked. Raises Broken."""
        if visits < lowest:
            raise Broken(f"{page}: {visits} answered where {lowest} were acknowledged")
        if strict and visits > self.highest(page):
            raise Broken(f"{page}: {visits} answered where {self.highest(page)} are possible")
        if monotonic and visits < self._seen[page]:
            raise Broken(f"{page}: {visits} answered where {self._seen[page]} was answered before")
        self._seen[page] = max(self._seen[page], visits)

    def check_at_most(self, page: str, visits: int) -> None:
        """A part of the count was answered. Raises Broken."""
        if visits > self.highest(page):
            raise Broken(f"{page}: {visits} pending where {self.highest(page)} are possible")

    def power_lost(self) -> None:
        """What was not durable may be gone; readers start anew."""
        self.lost_power = True
        self._seen.clear()
        if not self._durable:
            for page, visits in self._acknowledged.items():
                self._uncertain[page] += visits
            self._acknowledged.clear()
