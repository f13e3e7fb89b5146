"""A clock for tests."""

from __future__ import annotations


class Clock:
    """A clock that stands still until a test moves it. Seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
