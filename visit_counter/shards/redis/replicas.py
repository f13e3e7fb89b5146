"""Which replicas the servers of a shard have had: one that is away counts until it is back or a person gives it up.

A shard that gives this process no answer is down; a replica that its primary has lost is away.

A server lists only the replicas that are connected to it now. One that fails or hangs is no longer listed, and may be
promoted all the same. What it lacks must then still be in the journal. The flush keeps this memory in its state.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Replica(NamedTuple):
    """A replica: whose it was when it was last seen, and since when it is away, in seconds since the epoch (0: not).

    `given_up`: a person has said that it is not going to be promoted.
    """

    primary: str
    away_since: float = 0.0
    given_up: bool = False


class Replicas:
    """The replicas of one shard's servers, by address. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._known: dict[str, Replica] = {}

    def remember(self, known: Mapping[str, Replica]) -> None:
        """Replace what is known by this."""
        with self._lock:
            self._known = dict(known)

    def known(self) -> dict[str, Replica]:
        """Return what is known."""
        with self._lock:
            return dict(self._known)

    def see(self, primary: str, address: str, connected: Iterable[str]) -> list[str]:
        """Note which replicas a primary at `address` has; return those that it had and that nobody gave up.

        `primary` names it, whatever its address is.
        """
        with self._lock:
            there = set(connected)
            self._promote(primary, address)
            for name in sorted(there):
                self._known[name] = Replica(primary)
            away = [name for name, replica in self._known.items() if replica.primary == primary and name not in there]
            for name in away:
                replica = self._known[name]
                self._known[name] = replica._replace(away_since=replica.away_since or self._clock())
            return [name for name in away if not self._known[name].given_up]

    def _promote(self, primary: str, address: str) -> None:
        """Note that the server at this address is a primary, and the primary of the replicas it was listed with."""
        former = self._known.pop(address, None)
        if former is not None:
            for name, replica in self._known.items():
                if replica.primary == former.primary:
                    self._known[name] = replica._replace(primary=primary)


def replicas_of(info: str) -> list[str]:
    """Return the addresses of the replicas that are connected, from the text of INFO replication."""
    found = []
    for line in info.splitlines():
        name, _, text = line.partition(":")
        if name.startswith("slave") and name[5:].isdigit():
            said = dict(part.partition("=")[::2] for part in text.split(","))
            host = said.get("ip", "?")
            found.append(f"[{host}]:{said.get('port')}" if ":" in host else f"{host}:{said.get('port')}")
    return found
