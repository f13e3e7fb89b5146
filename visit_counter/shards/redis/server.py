"""One Redis or Valkey server as its callers reach it: its connections, its breaker, and what it says of itself.

With sentinels it is whichever of several servers they say it is. redis-py asks them for the primary whenever a
connection is opened. A connection that fails, or that says READONLY because its server has been demoted, is closed, so
the next call finds the new primary.
"""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypedDict

from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - redis-py's name

from visit_counter.logs import state_of
from visit_counter.shards.identity import Expected
from visit_counter.shards.redis.applying import Applier
from visit_counter.shards.redis.breaker import Breaker
from visit_counter.shards.redis.describe import Description, ServerStatus, description_of, read_info
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.replicas import Replicas
from visit_counter.shards.redis.shapes import are_pairs, is_pong, is_text, is_text_or_nothing
from visit_counter.shards.redis.wire import Wire, explain, is_down

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from visit_counter.config.settings import Shard
    from visit_counter.shards.identity import Identity
    from visit_counter.shards.redis.exchange import Command
    from visit_counter.shards.redis.shapes import Shape

log = logging.getLogger(__name__)


class Timeouts(TypedDict, total=False):
    """The time-outs of RedisServer by name, in seconds."""

    connect_seconds: float
    read_seconds: float
    add_seconds: float
    apply_seconds: float


class RedisServer:
    """The connections to one server. Nothing is opened before the first call.

    There are three kinds of connections, each with its own time-out. A read waits for a tenth of a second at most. A
    visit that is counted at once (`add`) may wait for the server's disk. A flush may take longer. Reads and adds ask
    the breaker first, and fail at once while the server is down. The results of all calls are reported to the breaker.
    """

    def __init__(  # noqa: PLR0913 - each time-out is named in the call, and has a default
        self,
        shard: Shard,
        *,
        connect_seconds: float = 0.05,
        read_seconds: float = 0.1,
        add_seconds: float = 1.0,
        apply_seconds: float = 5.0,
        breaker: Breaker | None = None,
        listed_replicas: Callable[[], int] | None = None,
        replicas: Replicas | None = None,
        primary: str = "",
    ) -> None:
        self.name = shard.name
        self._configured_address = shard.address
        self.breaker = breaker or Breaker()
        # Whether outages are logged. A process that lives for one flush would log each of them again.
        self._reports_outages = False
        self._trouble = ""
        self._expected = Expected()
        self._reads = Wire(shard, connect_seconds, read_seconds, self._expected)
        self._adds = Wire(shard, connect_seconds, add_seconds, self._expected)
        self._flushes = Wire(shard, apply_seconds, apply_seconds, self._expected)
        # For servers that may be the wrong ones: these connections do not check who the server is.
        self._questions = Wire(shard, connect_seconds, read_seconds)
        # The servers of a cluster share one object, each under its own address.
        self.replicas, self._primary = replicas or Replicas(), primary
        self._listed_replicas = listed_replicas or self._flushes.known_replicas
        # WAITAOF gets half of the time-out, so that its reply arrives before this side gives up the connection.
        self.applier = Applier(self.name, self._flushes, apply_seconds / 2, self._report, self._due_replicas)

    @property
    def address(self) -> str:
        """The server as host:port, for people; with sentinels the primary they named last, or nothing."""
        return self._flushes.address

    # -- whether it is up --------------------------------------------------------------------------------------------

    def is_down(self) -> bool:
        """Tell, without asking, whether the server is taken to be down."""
        return self.breaker.state != "closed"

    def ping(self) -> bool:
        """Tell whether the server answers PING within `read_seconds`, and tell the breaker."""
        (reply,) = self._reads.ask([pack(b"PING")], [is_pong])
        self._report([reply])
        return not isinstance(reply, RedisError)

    def probe(self) -> None:
        """Ping the server if it is down and the breaker's time has come."""
        if self.is_down() and self.breaker.allows():
            self.ping()

    def reason(self) -> str:
        """Return since when and why the server is taken to be down, or ""."""
        if not self.is_down():
            return ""
        why = f" ({self._trouble})" if self._trouble else ""
        return f"no answer for {self.breaker.since:.1f} s{why}"

    def report_outages(self) -> None:
        """Log from now on when the server is down, and when it is back."""
        self._reports_outages = True

    def _report(self, replies: Sequence[Any]) -> None:
        """Report to the breaker, and log the beginning and the end of an outage once each."""
        failed = next(filter(is_down, replies), None)
        if failed is None:
            if self.is_down() and (seconds := self.breaker.success()) is not None and self._reports_outages:
                log.warning(
                    "shard %s answers again; it was down for %.1f s", self.name, seconds, extra=self._is_now("up")
                )
            return
        self._trouble = explain(self.name, failed).reason
        if self.breaker.failure() and self._reports_outages:
            log.warning("shard %s is down: %s", self.name, self._trouble, extra=self._is_now("down"))

    def _is_now(self, state: str) -> dict[str, tuple[str, str]]:
        return state_of(f"shard {self.name}", state)

    # -- commands: what came for each, its reply or the RedisError ---------------------------------------------------

    def ask_read(self, commands: Sequence[bytes], shape: Shape, *, asking: bool = False) -> list[Any]:
        """Exchange packed commands as a reader does; all fail at once while the breaker is open."""
        return self._ask_if_up(self._reads, commands, shape, asking=asking)

    def ask_add(self, commands: Sequence[bytes], shape: Shape, *, asking: bool = False) -> list[Any]:
        """Exchange packed commands, with the time-out of `add`."""
        return self._ask_if_up(self._adds, commands, shape, asking=asking)

    def ask_flush(self, commands: Sequence[bytes], shape: Shape, *, asking: bool = False) -> list[Any]:
        """Exchange packed commands, with a flush's time-out, also while the breaker is open."""
        return self.ask_with_shapes(commands, repeat(shape), asking=asking)

    def ask_with_shapes(self, commands: Sequence[bytes], shapes: Iterable[Shape], *, asking: bool = False) -> list[Any]:
        """Do what `ask_flush` does, with a shape for each reply."""
        replies = self._flushes.ask(commands, shapes, asking=asking)
        self._report(replies)
        return replies

    def ask_each(self, commands: Sequence[tuple[int, bytes]], shapes: Iterable[Shape]) -> list[Any]:
        """Exchange the packed commands of partitions, with a flush's time-out."""
        return self.ask_with_shapes([command for _, command in commands], shapes)

    def ask_who(self, commands: Sequence[bytes]) -> list[Any]:
        """Ask a server that may be the wrong one. Only a missing answer is reported to the breaker."""
        if self.is_down() and not self._expected.identity.names and not self.breaker.allows():
            return self._not_asked(commands)
        replies = self._questions.ask(commands, repeat(is_text_or_nothing))
        if not self._expected.identity.names or any(map(is_down, replies)):
            self._report(replies)
        return replies

    def run(self, commands: Sequence[Command], shapes: Iterable[Shape]) -> list[Any]:
        """Run commands in one round trip, over one connection, with a flush's time-out."""
        return self.ask_with_shapes([pack(*command) for command in commands], shapes)

    def _ask_if_up(self, wire: Wire, commands: Sequence[bytes], shape: Shape, *, asking: bool) -> list[Any]:
        if not self.breaker.allows():
            return self._not_asked(commands)
        replies = wire.ask(commands, repeat(shape), asking=asking)
        self._report(replies)
        return replies

    def _not_asked(self, commands: Sequence[bytes]) -> list[Any]:
        return [ConnectionError(f"{self.reason()}; not asked again yet")] * len(commands)

    # -- what it is --------------------------------------------------------------------------------------------------

    def expect(self, identity: Identity) -> None:
        """Speak from the next connection on with no server that says it is another."""
        self._expected.identity = identity

    def describe(self) -> Description:
        """Return what the server is and how it is set up; raises StoreError. Waits up to `apply_seconds`."""
        settings = (b"appendfsync", b"cluster-require-full-coverage")
        # One command for each setting: Redis 6 allows only one name in CONFIG GET.
        commands = [(b"INFO",), *((b"CONFIG", b"GET", name) for name in settings)]
        replies = self.run(commands, [is_text, *(are_pairs for _ in settings)])
        if isinstance(replies[0], RedisError):
            raise explain(self.name, replies[0])
        return description_of(read_info(replies))

    def status_when_down(self, partitions: int, reason: str) -> ServerStatus:
        """Return the row of a server that does not answer."""
        return ServerStatus(self.address or self._configured_address, partitions=partitions, error=reason)

    # -- what is on its disk -----------------------------------------------------------------------------------------

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF.

        Returns False at once while the server is down, so that the flush does not wait once more.
        """
        return False if self.is_down() else self.applier.persist(timeout_seconds)

    def _due_replicas(self, address: str, connected: Sequence[str]) -> int | None:
        """Return how many replicas must have what was applied; None while one that must is away."""
        if self.replicas.see(self._primary, address, connected):
            return None
        return max(len(connected), self._listed_replicas())

    def close(self) -> None:
        """Close all connections."""
        self.applier.close()
        for wire in (self._reads, self._adds, self._flushes, self._questions):
            wire.close()
