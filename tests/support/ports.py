"""Ports for tests: nothing listens on them, no outgoing connection gets one, and no other process of tests has them.

So a server that is down for a while finds its port free when it comes back. The ports lie below those that the kernel
gives to outgoing connections, and each process of tests, of which several run side by side, has a block of its own.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST, _END, _BLOCK = 10_000, 32_000, 200


def free_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on, all different."""
    return [free_port() for _ in range(number)]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on; it comes back only after many others."""
    _, ports = _my_ports()
    return next(port for port in ports if _can_be_bound(port))


def listening(port: int) -> bool:
    """Tell whether anything accepts connections on a port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@cache
def _my_ports() -> tuple[socket.socket, Iterator[int]]:
    """Take a block of ports for the rest of this process; a socket says that it is taken, and goes with the process."""
    for first in random.sample(range(_FIRST, _END, _BLOCK), (_END - _FIRST) // _BLOCK):
        taken = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            taken.bind(f"\0ports-of-tests-{first}")  # a name of Linux's that needs no file
            return taken, cycle(range(first, first + _BLOCK))
        taken.close()
    raise AssertionError("every port is taken by other tests")


def _can_be_bound(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
