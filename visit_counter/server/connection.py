"""One client's connection as the worker's loop sees it, and the phases that it goes through.

Only the loop's thread moves a connection from one phase to the next::

    accept -> READING <-> SENDING -> LINGERING -> closed
               |   ^
               v   |
               AWAY
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from visit_counter.server.bodies import Awaited


class Phase(Enum):
    """What the loop does with a connection."""

    READING = "it reads requests, and answers them"
    SENDING = "the client does not take its answers as fast as they come: the loop reads no more until it has taken all"
    AWAY = "a thread has the connection, or its request waits for a shard: the loop neither reads nor sends"
    LINGERING = "all is sent: what the client still sends is thrown away until it closes"


class Next(Enum):
    """What the loop does with a connection once everything in `out` is sent."""

    READ = "read on"
    HAND = "give it to a thread"
    CLOSE = "close it"


class Connection:
    """One client's connection. Times are `time.monotonic()` seconds."""

    __slots__ = (
        "awaits",
        "buffer",
        "client",
        "deadline",
        "fd",
        "held",
        "is_cut",
        "next",
        "out",
        "phase",
        "server",
        "sock",
        "thrown_away",
        "waits_since",
        "was_continued",
    )

    def __init__(self, sock: socket.socket, client: Any, server: Any, deadline: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.client = client
        self.server = server
        self.phase = Phase.READING
        self.next = Next.READ
        self.buffer = b""  # bytes that the loop has read and not yet answered
        self.out = b""  # bytes that the loop must send before it does anything else with the connection
        self.held = b""  # while a request waits for a shard: earlier answers, which are sent before its own
        self.deadline = deadline
        # What the request in the buffer lacks. While this is not None, the deadline is that of the whole request.
        self.awaits: Awaited | None = None
        self.is_cut = False  # the loop ended the head in the buffer by itself: no other request may follow
        self.was_continued = False  # the client has received 100 Continue, and sends the body now
        self.waits_since: float | None = None  # when its request began to wait for a shard; None while it does not
        self.thrown_away = 0  # how many bytes the loop has thrown away while the connection lingers
