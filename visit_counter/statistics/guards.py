"""Which visits are answered and not counted, and which are refused: own addresses, repeats, too many of one client.

Each guard is off unless it is asked for. Visits are counted exactly; guards are not: two workers that judge visits of
one client in the same microsecond may let one more through.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.errors import RateError
from visit_counter.model.clients import Networks, client_of, household
from visit_counter.statistics.shared_table import shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from visit_counter.config.settings import Settings


class Ignored(Enum):
    """Why a visit is answered and not counted."""

    OWN = "own"
    REPEAT = "repeat"


class Sent(NamedTuple):
    """What a request says of its sender: the header fields that matter, "" for one that is not there."""

    peer: str
    forwarded: str = ""
    user_agent: str = ""


class Guards:
    """Judges visits. Make it before the workers are forked: they share what it remembers."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._trusted = Networks(settings.trusted_proxies)
        self._own = Networks(settings.ignore_addresses)
        self._has_own = bool(settings.ignore_addresses)
        self._rate = settings.rate_limit
        self._repeat_seconds = settings.repeat_seconds
        self._clock = clock
        self.are_active = bool(self._has_own or self._rate.visits or self._repeat_seconds)
        self._limits, self._last, self._figures = shared("limits"), shared("last"), shared("figures")

    def judge(self, page: str | None, sent: Sent, visits: int = 1) -> Ignored | None:
        """Tell why a visit is not counted; None if it is. Raises RateError if its client has sent too many.

        So for a batch, all of it or none; it has no page, and in it no repeats are looked for.
        """
        try:
            reason = self._judge(page, sent, visits)
        except RateError:
            self._note("rate", visits)
            raise
        if reason:
            self._note(reason.value, visits)
        return reason

    def why(self, page: str, sent: Sent) -> Ignored | None:
        """Tell what `judge` would, and remember nothing of it. Raises RateError."""
        return self._judge(page, sent, 1, remember=False)

    def client(self, sent: Sent) -> str:
        """Return the address of who has sent a request."""
        return client_of(sent.peer, sent.forwarded, self._trusted)

    def is_hidden(self, sent: Sent) -> bool:
        """Tell whether a proxy that is not believed names another client."""
        return bool(sent.forwarded) and not self._trusted.has(sent.peer)

    def figures(self) -> dict[str, int]:
        """Return how many visits were not counted since the service started on this host, by reason."""
        found = {reason: int(self._figures.get(reason)) for reason in (*(each.value for each in Ignored), "rate")}
        return {reason: number for reason, number in found.items() if number}

    def _note(self, reason: str, visits: int) -> None:
        self._figures.set(self._figures.get(reason) + visits, reason)

    def _judge(self, page: str | None, sent: Sent, visits: int, *, remember: bool = True) -> Ignored | None:
        client = self.client(sent)
        if self._has_own and self._own.has(client):
            return Ignored.OWN
        if self._rate.visits:
            self._limit(household(client), visits, remember=remember)
        if (
            self._repeat_seconds
            and page is not None
            and self._is_repeat(page, client, sent.user_agent, remember=remember)
        ):
            return Ignored.REPEAT
        return None

    def _limit(self, client: str, visits: int, *, remember: bool) -> None:
        """Count visits of a client against the rate.

        The generic cell rate algorithm (ITU-T I.371): one number for a client, the time at which all its visits so far
        would have come had they come evenly. It may be ahead of now by the time that the limit is for.
        """
        now, cost = self._clock(), visits * self._rate.seconds / self._rate.visits
        due = self._limits.get(client)
        due = now if not now <= due <= now + self._rate.seconds else due
        wait = due + cost - now - self._rate.seconds
        if wait > 1e-6:
            raise RateError(f"{self._rate.visits} visits in {self._rate.seconds} s", wait)
        if remember:
            self._limits.set(due + cost, client)

    def _is_repeat(self, page: str, client: str, user_agent: str, *, remember: bool) -> bool:
        """Tell whether a visit of this visitor to this page was counted a moment ago."""
        now = self._clock()
        last = self._last.get(page, client, user_agent)
        is_repeat = last > 0 and now - last < self._repeat_seconds
        if remember and not is_repeat:
            self._last.set(now, page, client, user_agent)
        return is_repeat
