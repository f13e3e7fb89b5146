"""Names of servers, looked up so that nobody waits long for a name server.

`getaddrinfo` has no time-out and cannot be interrupted, so every look-up runs in a thread of its own. An address that
was found once is used at once from then on, and looked up again in the background; it is kept for as long as the name
server gives no other. Only the first caller that needs a name waits for it, and no longer than its own time-out.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A name is looked up again at most this often.
_AGAIN_SECONDS = 1.0


class _Found(NamedTuple):
    """The addresses of a name, and when they were asked for; seconds of the clock."""

    addresses: tuple[str, ...]
    asked_at: float


class _LookUp:
    """One question to the name server, under way or answered."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.done = Event()
        self.error: OSError | None = None


def ask_system(host: str) -> Sequence[str]:
    """Return the addresses that the system gives for a name, best first. Raises OSError; waits as long as it takes."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Names:
    """What is known of the addresses of hosts. Safe to use from several threads, and after a fork."""

    def __init__(
        self, ask: Callable[[str], Sequence[str]] = ask_system, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        # No lock: a fork could copy it locked. Each entry is replaced as a whole.
        self._found: dict[str, _Found] = {}
        self._under_way: dict[str, _LookUp] = {}

    def addresses(self, host: str, wait_seconds: float | None) -> tuple[str, ...]:
        """Return the addresses of a host, best first; one that is an address already is returned as it is.

        Waits, and only for a name that was never found, up to `wait_seconds` (None: as long as it takes). Raises
        OSError if it is not known then.
        """
        if _is_address(host):
            return (host,)
        found = self._found.get(host)
        if found is not None and self._clock() - found.asked_at < _AGAIN_SECONDS:
            return found.addresses
        look_up = self._begin(host)
        if found is not None:
            return found.addresses
        if not look_up.done.wait(wait_seconds):
            raise OSError(f"the name {host} is not known yet: the name server has not answered")
        if look_up.error is not None:
            raise look_up.error
        return self._found[host].addresses

    def _begin(self, host: str) -> _LookUp:
        """Return the look-up that is under way; begin one if there is none in this process."""
        present = self._under_way.get(host)
        if present is not None and present.process == os.getpid() and not present.done.is_set():
            return present
        look_up = self._under_way[host] = _LookUp()
        Thread(target=self._run, args=(host, look_up), name=f"look up {host}", daemon=True).start()
        return look_up

    def _run(self, host: str, look_up: _LookUp) -> None:
        asked_at = self._clock()
        try:
            addresses = tuple(dict.fromkeys(self._ask(host)))
            if not addresses:
                raise OSError(f"the name {host} has no address")
            self._found[host] = _Found(addresses, asked_at)
        except (OSError, UnicodeError) as error:
            look_up.error = error if isinstance(error, OSError) else OSError(f"{host} is no name")
        look_up.done.set()


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return True
    return False


# What this process knows, and a forked one inherits.
NAMES = Names()
