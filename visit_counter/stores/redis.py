"""RedisStore: a shard, which is one Redis or Valkey server; with sentinels, whichever of several they say it is.

With sentinels, redis-py asks them for the primary whenever a connection is opened. A connection that fails, or that
says READONLY because its server has been demoted, is closed, so the next call finds the new primary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - redis-py's name

from visit_counter.errors import PartitionMovedError, StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.ring import PARTITIONS, partition_of
from visit_counter.stores import moving
from visit_counter.stores.applying import Applier, partition_key, text_of, watermark_field
from visit_counter.stores.base import NOT_A_PARTITION, Applied, Batch, Store, Stored, is_token
from visit_counter.stores.breaker import Breaker
from visit_counter.stores.describe import Description, Seen, describe, read_info
from visit_counter.stores.wire import Wire, explain, is_away, is_elsewhere, pack
from visit_counter.topology import KEY as TOPOLOGY_KEY
from visit_counter.topology import public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from visit_counter.settings import Shard


class Patience(TypedDict, total=False):
    """The time-outs of RedisStore by name, in seconds."""

    connect_seconds: float
    read_seconds: float
    add_seconds: float
    apply_seconds: float


# Bounds what waits in the buffers of both sides in one round trip.
CHUNK_READS = 1000
# Where the writers are looked up, to tell watermarks from pages.
_SAMPLE_PARTITIONS, _SAMPLE_FIELDS = 16, 1000


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
        known_replicas: Callable[[], int] | None = None,
    ) -> None:
        self.name = shard.name
        self._address = shard.address
        self.address = public_url(shard.url)
        self.breaker = breaker or Breaker()
        self._reads = Wire(shard, connect_seconds, read_seconds)
        self._adds = Wire(shard, connect_seconds, add_seconds)
        self._flushes = Wire(shard, apply_seconds, apply_seconds)
        # Half, so that the server's answer to a wait arrives before this side gives up on the connection.
        self.applier = Applier(
            self.name, self._flushes, apply_seconds / 2, self._report, known_replicas or self._flushes.known_replicas
        )

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`.

        Raises PartitionMovedError where another shard has it, StoreRefusedError while it is on its way there.
        """
        (count,) = self.ask_add([add_command(page, visits)])
        if is_elsewhere(count):
            # Tells where to, unless it is still on its way.
            self._values(self.ask_add, [(partition_of(page), [page.encode()])])
            raise StoreRefusedError(self.name, f"partition {partition_of(page)} is being moved")
        return int(self._answers([count])[0])

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        mark = watermark_field(writer)
        for first in range(0, len(pages), CHUNK_READS):
            wanted = [(partition_of(page), (page.encode(), mark)) for page in pages[first : first + CHUNK_READS]]
            stored += [stored_of(self.name, values) for values in self._values(self.ask_read, wanted)]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch, 64 or about 1 MB in a round trip; waits up to `apply_seconds` for each reply."""
        results = self.applier.apply(writer, list(batches))
        elsewhere = [index for index, result in enumerate(results) if result.error and "WRONGTYPE" in result.error]
        if elsewhere:
            places = self.run([moving.look(results[index].partition) for index in elsewhere])
            for index, place in zip(elsewhere, places, strict=True):
                results[index] = _waiting(results[index], place)
        return results

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply.

        Of a shard that is away, a ping is awaited first: a flush comes back soon, and has other shards to see to.
        """
        if self.breaker.state != "closed" and not self.ping():
            raise StoreUnavailableError(self.name, f"no answer for {self.breaker.since:.1f} s")
        field = watermark_field(writer)
        found = self._values(self.ask_flush, [(at, (field,)) for at in partitions], strange=[NOT_A_PARTITION.encode()])
        return [text_of(mark or b"") for (mark,) in found]

    def read_topology(self) -> str:
        """Return the topology kept here, or ""; waits up to `read_seconds`."""
        (text,) = self._answers(self.ask_read([topology_command()]))
        return (text or b"").decode(errors="replace")

    def offer_topology(self, text: str) -> str:
        """Keep this topology unless a newer one is here; waits up to `apply_seconds`."""
        (kept,) = self._answers(self.run([offer(text)]))
        return bytes(kept).decode(errors="replace")

    def run(self, commands: Sequence[moving.Command]) -> list[Any]:
        """Run commands in one round trip, over one connection; return the reply or the RedisError of each."""
        return self.ask_flush([pack(*command) for command in commands])

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF.

        False at once while the shard is away: a flush has just found that out, and has other shards to see to.
        """
        if self.breaker.state != "closed":
            return False
        return self.applier.persist(timeout_seconds)

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
        settings = (b"appendfsync", b"cluster-require-full-coverage")
        # One by one: Redis 6 takes no more than one name.
        replies = self.ask_flush([pack(b"INFO"), *(pack(b"CONFIG", b"GET", name) for name in settings)])
        if isinstance(replies[0], RedisError):
            raise explain(self.name, replies[0])
        return describe(read_info(replies))

    def look(self, writer: str, partitions: Sequence[int]) -> list[Seen]:
        """Return one row: what the server is like, and how many pages it has in these partitions."""
        return [self.look_at(writer, partitions)]

    def look_at(self, writer: str, partitions: Sequence[int]) -> Seen:
        """Return what `look` does; a server that does not answer is down, with the reason."""
        try:
            said = self.describe()
            pages = self._pages(writer, partitions)
            strange = self._partitions_beyond()
        except StoreError as error:
            return Seen(self._flushes.address or self._address, partitions=len(partitions), error=error.reason)
        warnings = (*said.warnings, *strange)
        return Seen(
            self._flushes.address, partitions=len(partitions), up=True, pages=pages, said=said, warnings=warnings
        )

    def _pages(self, writer: str, partitions: Sequence[int]) -> int:
        """Return how many pages the partitions hold: their fields but for the watermarks.

        Which writers there are is looked up in a few small partitions; a writer that has been nowhere but in others
        makes the number too high by one for each of those.
        """
        sizes: list[int] = self._answers(self.ask_flush([pack(b"HLEN", partition_key(at)) for at in partitions]))
        small = sorted((size, at) for size, at in zip(sizes, partitions, strict=True) if 0 < size <= _SAMPLE_FIELDS)
        sample = [pack(b"HKEYS", partition_key(at)) for _, at in small[:_SAMPLE_PARTITIONS]]
        writers = {watermark_field(writer)}
        for fields in self._answers(self.ask_flush(sample)):
            writers |= {field for field in fields if field.startswith(b"\t")}
        marks = [pack(b"HMGET", partition_key(at), *sorted(writers)) for at in partitions]
        found = self._answers(self.ask_flush(marks))
        return sum(sizes) - sum(mark is not None for reply in found for mark in reply)

    def _partitions_beyond(self) -> list[str]:
        """Return a warning if the server holds partitions that there are not."""
        beyond = range(PARTITIONS, 2 * PARTITIONS)
        replies = self.ask_flush([pack(b"HLEN", partition_key(at)) for at in beyond])
        known = [at for at, reply in zip(beyond, replies, strict=True) if isinstance(reply, int) and reply]
        if not known:
            return []
        return [f"it holds partition {known[0]}, but pages are in {PARTITIONS} partitions: another version wrote it"]

    def close(self) -> None:
        """Close all connections."""
        self.applier.close()
        for wire in (self._reads, self._adds, self._flushes):
            wire.close()

    # -- packed commands: what came for each, its reply or the RedisError ---------------------------------------

    def ask_read(self, commands: Sequence[bytes], *, asking: bool = False) -> list[Any]:
        """Exchange packed commands as a reader does; all fail at once while the breaker is open."""
        return self._ask_if_up(self._reads, commands, asking=asking)

    def ask_add(self, commands: Sequence[bytes], *, asking: bool = False) -> list[Any]:
        """Exchange packed commands with the patience of a visit that is counted at once."""
        return self._ask_if_up(self._adds, commands, asking=asking)

    def ask_flush(self, commands: Sequence[bytes], *, asking: bool = False) -> list[Any]:
        """Exchange packed commands with the patience of a flush, whatever the breaker says."""
        replies = self._flushes.ask(commands, asking=asking)
        self._report(replies)
        return replies

    def _ask_if_up(self, wire: Wire, commands: Sequence[bytes], *, asking: bool) -> list[Any]:
        if not self.breaker.allows():
            away = ConnectionError(f"no answer for {self.breaker.since:.1f} s; not asked again yet")
            return [away] * len(commands)
        replies = wire.ask(commands, asking=asking)
        self._report(replies)
        return replies

    def _values(
        self,
        ask: Callable[[list[bytes]], list[Any]],
        wanted: Sequence[tuple[int, Sequence[bytes]]],
        *,
        strange: list[bytes | None] | None = None,
    ) -> list[list[bytes | None]]:
        """Return the values of fields of partitions, also of one that is frozen here.

        Where there is something else than a partition, that is `strange`; without it, this raises StoreRefusedError.
        Raises PartitionMovedError with all partitions that are on other shards now.
        """
        replies = ask([pack(b"HMGET", partition_key(at), *fields) for at, fields in wanted])
        elsewhere = [index for index, reply in enumerate(replies) if is_elsewhere(reply)]
        if not elsewhere:
            return self._answers(replies)
        self._answers([reply for reply in replies if not is_elsewhere(reply)])
        found = ask([pack(*moving.find(*wanted[index])) for index in elsewhere])
        self._answers([reply for reply in found if not is_elsewhere(reply)])
        moved: dict[int, str] = {}
        for index, reply in zip(elsewhere, found, strict=True):
            # No string, and no hash either: the script was refused as the command was.
            text, values = (b"?", []) if is_elsewhere(reply) else reply
            place = moving.Place.from_bytes(text)
            if place.kind == "?":
                if strange is None:
                    raise StoreRefusedError(self.name, f"WRONGTYPE visits:{{{wanted[index][0]}}} is not a partition")
                replies[index] = strange
                continue
            if place.kind == "moved":
                moved[wanted[index][0]] = place.shard
            replies[index] = values
        if moved:
            raise PartitionMovedError(self.name, moved)
        return replies

    def _answers(self, replies: list[Any]) -> list[Any]:
        """Return the replies if all are; raises StoreError for the first that is an error."""
        for reply in replies:
            if isinstance(reply, RedisError):
                raise explain(self.name, reply)
        return replies

    def _report(self, replies: Sequence[Any]) -> None:
        if any(is_away(reply) for reply in replies):
            self.breaker.failure()
        else:
            self.breaker.success()


def add_command(page: str, visits: int) -> bytes:
    """Return the packed command that counts visits at once and replies with the count."""
    return pack(b"HINCRBY", partition_key(partition_of(page)), page.encode(), b"%d" % visits)


def read_command(writer: str, page: str) -> bytes:
    """Return the packed command whose reply `stored_of` understands."""
    return pack(b"HMGET", partition_key(partition_of(page)), page.encode(), watermark_field(writer))


def watermark_command(writer: str, partition: int) -> bytes:
    """Return the packed command that replies with a writer's watermark token, or nothing."""
    return pack(b"HGET", partition_key(partition), watermark_field(writer))


def stored_of(shard: str, reply: Sequence[bytes | None]) -> Stored:
    """Return the count and the watermark that a reply holds; raises StoreRefusedError for anything else."""
    count, watermark = reply
    mark = text_of(watermark or b"")
    if not is_token(mark):
        raise StoreRefusedError(shard, "the partition has a watermark that no flush wrote; the next flush mends it")
    try:
        return Stored(int(count or 0), mark)
    except ValueError:
        raise StoreRefusedError(shard, "the partition holds a value that is not a count") from None


def topology_command() -> bytes:
    """Return the packed command that replies with the topology kept there, or nothing."""
    return pack(b"GET", TOPOLOGY_KEY)


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
