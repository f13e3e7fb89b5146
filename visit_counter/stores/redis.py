"""RedisStore: a shard, which is one Redis or Valkey server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from visit_counter.errors import PartitionMovedError, StoreRefusedError, StoreUnavailableError
from visit_counter.ring import partition_of
from visit_counter.stores import moving
from visit_counter.stores.applying import Applier, partition_key, watermark_field
from visit_counter.stores.base import Applied, Batch, Store, Stored
from visit_counter.stores.breaker import Breaker
from visit_counter.stores.describe import Description, describe, read_info
from visit_counter.stores.wire import Wire, explain, is_away, is_elsewhere, pack
from visit_counter.topology import KEY as TOPOLOGY_KEY
from visit_counter.topology import public_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from visit_counter.settings import Shard

# Bounds what waits in the buffers of both sides in one round trip.
CHUNK_READS = 1000

# KEYS  1 the topology
# ARGV  1 a topology's text, which begins with its version
# Returns the one there is afterwards: the newer of the two.
_OFFER = b"""
local present = redis.call('GET', KEYS[1]) or '0'
if tonumber(string.match(present, '^%d+') or 0) < tonumber(string.match(ARGV[1], '^%d+')) then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return present
"""


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
        self.address = public_url(shard.url)
        self.breaker = breaker or Breaker()
        self._reads = Wire(shard.url, connect_seconds, read_seconds)
        self._adds = Wire(shard.url, connect_seconds, add_seconds)
        self._flushes = Wire(shard.url, apply_seconds, apply_seconds)
        # Half, so that the server's answer to a wait arrives before this side gives up on the connection.
        self._applier = Applier(self.name, self._flushes, apply_seconds / 2, self._report)

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`.

        Raises PartitionMovedError where another shard has it, StoreRefusedError while it is on its way there.
        """
        partition = partition_of(page)
        command = pack(b"HINCRBY", partition_key(partition), page.encode(), b"%d" % visits)
        self._check_up()
        (count,) = self._ask(self._adds, [command], elsewhere=True)
        if is_elsewhere(count):
            # The outcome is a refusal, unless the partition has come back this moment.
            self._values(self._adds, [(partition, [page.encode()])])
            raise StoreRefusedError(self.name, f"partition {partition} is being moved")
        return int(count)

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        mark = watermark_field(writer)
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            wanted = [(partition_of(page), [page.encode(), mark]) for page in pages[first : first + CHUNK_READS]]
            self._check_up()
            stored += [self._stored(*values) for values in self._values(self._reads, wanted)]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch, 64 or about 1 MB in a round trip; waits up to `apply_seconds` for each reply."""
        results = self._applier.apply(writer, list(batches))
        elsewhere = [index for index, result in enumerate(results) if result.error and "WRONGTYPE" in result.error]
        if elsewhere:
            places = self.run([moving.look(results[index].partition) for index in elsewhere])
            for index, place in zip(elsewhere, places, strict=True):
                results[index] = _waiting(results[index], place)
        return results

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply."""
        field = watermark_field(writer)
        return [(mark or b"").decode() for (mark,) in self._values(self._flushes, [(at, [field]) for at in partitions])]

    def topology(self) -> str:
        """Return the topology kept here, or ""; waits up to `read_seconds`."""
        self._check_up()
        (text,) = self._ask(self._reads, [pack(b"GET", TOPOLOGY_KEY)])
        return (text or b"").decode(errors="replace")

    def offer_topology(self, text: str) -> str:
        """Keep this topology unless a newer one is here; waits up to `apply_seconds`."""
        (kept,) = self._ask(self._flushes, [pack(*offer(text))])
        return bytes(kept).decode(errors="replace")

    def run(self, commands: Sequence[moving.Command]) -> list[Any]:
        """Run commands in one round trip, over one connection; return the reply or the RedisError of each."""
        replies = self._flushes.ask([pack(*command) for command in commands])
        self._report(replies)
        return replies

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF."""
        return self._applier.persist(timeout_seconds)

    def ping(self) -> bool:
        """Tell whether the server answers PING within `read_seconds`, and tell the breaker."""
        (reply,) = self._reads.ask([pack(b"PING")])
        self._report([reply])
        return bool(reply == b"PONG")

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

    def _check_up(self) -> None:
        if not self.breaker.allows():
            raise StoreUnavailableError(self.name, f"no answer for {self.breaker.since:.1f} s; not asked again yet")

    def _ask(self, wire: Wire, commands: Sequence[bytes], *, elsewhere: bool = False) -> list[Any]:
        """Return a reply for each command; raises StoreError for the first that has none.

        With `elsewhere`, the refusal of a command whose partition is not in its own place is a reply.
        """
        replies = wire.ask(commands)
        self._report(replies)
        for reply in replies:
            if isinstance(reply, RedisError) and not (elsewhere and is_elsewhere(reply)):
                raise explain(self.name, reply)
        return replies

    def _values(self, wire: Wire, wanted: Sequence[tuple[int, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Return the values of fields of partitions, also of one that is frozen here.

        Raises PartitionMovedError with all partitions that are on other shards now.
        """
        replies = self._ask(wire, [pack(b"HMGET", partition_key(at), *fields) for at, fields in wanted], elsewhere=True)
        elsewhere = [index for index, reply in enumerate(replies) if is_elsewhere(reply)]
        if not elsewhere:
            return replies
        moved: dict[int, str] = {}
        for index, (text, values) in zip(
            elsewhere, self._ask(wire, [pack(*moving.find(*wanted[index])) for index in elsewhere]), strict=True
        ):
            place = moving.Place.from_bytes(text)
            if place.kind == "?":
                raise StoreRefusedError(self.name, f"WRONGTYPE visits:{{{wanted[index][0]}}} is not a partition")
            if place.kind == "moved":
                moved[wanted[index][0]] = place.shard
            replies[index] = values
        if moved:
            raise PartitionMovedError(self.name, moved)
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


def offer(text: str) -> moving.Command:
    """Return the command that keeps a topology unless a newer one is there."""
    return (b"EVAL", _OFFER, b"1", TOPOLOGY_KEY, text.encode())


def _waiting(applied: Applied, reply: Any) -> Applied:
    """Say why a batch was not applied, given what `moving.look` said of its partition's place."""
    if isinstance(reply, RedisError):
        return applied
    place = moving.Place.from_bytes(reply[0])
    if place.kind == "moved":
        reason = f"partition {applied.partition} has moved to {place.shard}"
        return applied._replace(error=reason, moved_to=place.shard)
    if place.kind == "?":
        return applied
    return applied._replace(error="a partition is being moved; the next flush brings its visits")
