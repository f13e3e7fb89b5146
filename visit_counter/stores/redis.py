"""RedisStore: a shard, which is one Redis or Valkey server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from visit_counter.errors import StoreRefusedError, StoreUnavailableError
from visit_counter.ring import partition_of
from visit_counter.stores.applying import Applier, partition_key, watermark_field
from visit_counter.stores.base import Applied, Batch, Store, Stored
from visit_counter.stores.breaker import Breaker
from visit_counter.stores.describe import Description, describe, read_info
from visit_counter.stores.wire import Wire, explain, is_away, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from visit_counter.settings import Shard

# Bounds what waits in the buffers of both sides in one round trip.
CHUNK_READS = 1000


class RedisStore(Store):
    """Counts on one server. Nothing is opened before the first call.

    Three kinds of connections, each with its own patience: a reader waits a tenth of a second at most, a visit that
    is counted at once (`add`) may wait for the disk of the server, and a flush has time. Reads and adds go through
    the breaker: while the shard is away they fail at once. Everything reports to it.
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
    ) -> None:
        self.name = shard.name
        self.breaker = breaker or Breaker()
        self._reads = Wire(shard.url, connect_seconds, read_seconds)
        self._adds = Wire(shard.url, connect_seconds, add_seconds)
        self._flushes = Wire(shard.url, apply_seconds, apply_seconds)
        # Half, so that the server's answer to a wait arrives before this side gives up on the connection.
        self._applier = Applier(self.name, self._flushes, apply_seconds / 2, self._report)

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`."""
        key = partition_key(partition_of(page))
        (count,) = self._ask_if_up(self._adds, [pack(b"HINCRBY", key, page.encode(), b"%d" % visits)])
        return int(count)

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        field = watermark_field(writer)
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            commands = [
                pack(b"HMGET", partition_key(partition_of(page)), page.encode(), field)
                for page in pages[first : first + CHUNK_READS]
            ]
            stored += [self._stored(*reply) for reply in self._ask_if_up(self._reads, commands)]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch, 64 or about 1 MB in a round trip; waits up to `apply_seconds` for each reply."""
        return self._applier.apply(writer, list(batches))

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply.

        Of a shard that is away, a ping is awaited first: a flush comes back soon, and has other shards to see to.
        """
        if self.breaker.state != "closed" and not self.ping():
            raise StoreUnavailableError(self.name, f"no answer for {self.breaker.since:.1f} s")
        field = watermark_field(writer)
        replies = self._ask(self._flushes, [pack(b"HGET", partition_key(at), field) for at in partitions])
        return [(reply or b"").decode() for reply in replies]

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF.

        False at once while the shard is away: a flush has just found that out, and has other shards to see to.
        """
        if self.breaker.state != "closed":
            return False
        return self._applier.persist(timeout_seconds)

    def ping(self) -> bool:
        """Tell whether the server answers PING within `read_seconds`, and tell the breaker."""
        (reply,) = self._reads.ask([pack(b"PING")])
        self._report([reply])
        return bool(reply == b"PONG")

    def is_away(self, page: str) -> bool:  # noqa: ARG002 - this store keeps every page it is asked for
        """Tell whether the breaker is not closed."""
        return self.breaker.state != "closed"

    def probe(self) -> None:
        """Ping the server if it is away and the breaker's time has come."""
        if self.breaker.state != "closed" and self.breaker.allows():
            self.ping()

    def describe(self) -> Description:
        """Return what the server is and how it is set up; raises StoreError. Waits up to `apply_seconds`."""
        replies = self._flushes.ask([pack(b"INFO"), pack(b"CONFIG", b"GET", b"appendfsync")])
        self._report(replies)
        if isinstance(replies[0], RedisError):
            raise explain(self.name, replies[0])
        return describe(read_info(replies))

    def close(self) -> None:
        """Close all connections."""
        self._applier.close()
        for wire in (self._reads, self._adds, self._flushes):
            wire.close()

    def _ask_if_up(self, wire: Wire, commands: Sequence[bytes]) -> list[Any]:
        if not self.breaker.allows():
            raise StoreUnavailableError(self.name, f"no answer for {self.breaker.since:.1f} s; not asked again yet")
        return self._ask(wire, commands)

    def _ask(self, wire: Wire, commands: Sequence[bytes]) -> list[Any]:
        """Return a reply for each command; raises StoreError for the first that has none."""
        replies = wire.ask(commands)
        self._report(replies)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise explain(self.name, reply)
        return replies

    def _report(self, replies: Sequence[Any]) -> None:
        if any(is_away(reply) for reply in replies):
            self.breaker.failure()
        else:
            self.breaker.success()

    def _stored(self, count: bytes | None, watermark: bytes | None) -> Stored:
        try:
            return Stored(int(count or 0), (watermark or b"").decode())
        except ValueError:
            raise StoreRefusedError(self.name, "the partition holds a value that is not a count") from None
