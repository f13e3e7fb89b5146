"""RedisStore: one Redis or Valkey server as a shard. `server` speaks with it; this module says what it is asked."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, Unpack

from redis.exceptions import RedisError

from visit_counter.errors import StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.shards.contract import NOT_A_PARTITION, Applied, Batch, Look, Store, Stored, all_of
from visit_counter.shards.identity import KEY as IDENTITY_KEY
from visit_counter.shards.identity import Identity
from visit_counter.shards.rebalance import moving
from visit_counter.shards.redis.commands import (
    LOOK,
    add_command,
    look_command,
    look_or_none,
    losses_command,
    offer_command,
    stored_fields,
    stored_of,
    text_of,
    watermark_field,
)
from visit_counter.shards.redis.describe import ServerStatus
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.inspection import count_pages_of
from visit_counter.shards.redis.reading import answers_of, read_fields
from visit_counter.shards.redis.server import RedisServer
from visit_counter.shards.redis.shapes import anything, is_number, is_text
from visit_counter.shards.redis.wire import explain, is_elsewhere
from visit_counter.shards.ring import partition_of
from visit_counter.shards.shard_map import KEY as SHARD_MAP_KEY
from visit_counter.shards.shard_map import public_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visit_counter.config.settings import Shard
    from visit_counter.shards.redis.breaker import Breaker
    from visit_counter.shards.redis.exchange import Command
    from visit_counter.shards.redis.replicas import Replica
    from visit_counter.shards.redis.server import Timeouts
    from visit_counter.shards.redis.shapes import Shape

# Bounds what waits in the buffers of both sides in one round trip.
CHUNK_READS = 1000


class RedisStore(Store):
    """Counts on one server. Nothing is opened before the first call. `timeouts` are those of RedisServer."""

    def __init__(self, shard: Shard, *, breaker: Breaker | None = None, **timeouts: Unpack[Timeouts]) -> None:
        self.name = shard.name
        self.address = public_url(shard.url)
        self.server = RedisServer(shard, breaker=breaker, **timeouts)

    # -- pages and partitions ----------------------------------------------------------------------------------------

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`.

        Raises PartitionMovedError if another shard has the page, StoreRefusedError while it is being moved there.
        """
        (count,) = self.server.ask_add([add_command(page, visits)], is_number)
        if is_elsewhere(count):
            # Raises PartitionMovedError, unless the partition is still being moved.
            read_fields(self.name, self.server.ask_add, [(partition_of(page), [page.encode()])])
            raise StoreRefusedError(self.name, f"partition {partition_of(page)} is being moved")
        return int(answers_of(self.name, [count])[0])

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            chunk = pages[first : first + CHUNK_READS]
            wanted = [(partition_of(page), stored_fields(writer, page)) for page in chunk]
            stored += [stored_of(self.name, reply) for reply in read_fields(self.name, self.server.ask_read, wanted)]
        return stored

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        """Return what tells whether each partition has changed; None for one that is not in its place, too."""
        replies = self.server.ask_read([look_command(writer, at) for at in partitions], LOOK)
        return [look_or_none(self.name, reply) for reply in replies]

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch, 64 or about 1 MB in a round trip; waits up to `apply_seconds` for each reply."""
        results = self.server.applier.apply(writer, list(batches))
        elsewhere = [index for index, result in enumerate(results) if result.error and "WRONGTYPE" in result.error]
        if elsewhere:
            places = self.run(
                [moving.inspect(results[index].partition) for index in elsewhere], repeat(moving.INSPECTED)
            )
            for index, place in zip(elsewhere, places, strict=True):
                results[index] = _not_in_its_place(results[index], place)
        return results

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply."""
        return all_of(self.watermarks_each(writer, partitions))

    def watermarks_each(self, writer: str, partitions: Sequence[int]) -> list[str | StoreError]:
        """Return the writer's watermark token in each partition, or why that one's cannot be had.

        A shard that is down is pinged first, because a ping has the shortest time-out. The next flush tries again.
        """
        if self.server.is_down() and not self.ping():
            raise StoreUnavailableError(self.name, self.reason())
        wanted = [(at, (watermark_field(writer),)) for at in partitions]
        strange: list[bytes | None] = [NOT_A_PARTITION.encode()]
        found = read_fields(self.name, self.server.ask_flush, wanted, strange=strange)
        return [text_of(mark or b"") for (mark,) in found]

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition by a number; waits up to `apply_seconds` for each reply."""
        commands = [(partition, losses_command(partition, number)) for partition, number in by.items()]
        replies = self.server.ask_each(commands, repeat(is_number))
        return {partition for partition, reply in zip(by, replies, strict=True) if isinstance(reply, int)}

    # -- the shard map, and who the server is ------------------------------------------------------------------------

    def read_shard_map(self) -> str:
        """Return the shard map kept here, or ""; waits up to `read_seconds`."""
        return self._read_text(SHARD_MAP_KEY)

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; waits up to `apply_seconds`."""
        (kept,) = answers_of(self.name, self.run([offer_command(text)], repeat(is_text)))
        return bytes(kept).decode(errors="replace")

    def read_identity(self) -> Identity:
        """Return who the server says it is; waits up to `read_seconds`."""
        return Identity.from_text(self._read_text(IDENTITY_KEY))

    def name_server(self, identity: Identity) -> None:
        """Tell a server that says nothing who it is; waits up to `apply_seconds`."""
        answers_of(self.name, self.run([(b"SET", IDENTITY_KEY, identity.to_text().encode(), b"NX")]))

    def expect(self, identity: Identity) -> None:
        """Speak from the next connection on with no server that says it is another."""
        self.server.expect(identity)

    def _read_text(self, key: bytes) -> str:
        (text,) = answers_of(self.name, self.server.ask_who([pack(b"GET", key)]))
        return (text or b"").decode(errors="replace")

    # -- its disk and its replicas -----------------------------------------------------------------------------------

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF."""
        return self.server.persist(timeout_seconds)

    def remember_replicas(self, known: Mapping[str, Replica]) -> None:
        """Set the replicas that `persist` has to wait for; those that it finds are added to them."""
        self.server.replicas.remember(known)

    def known_replicas(self) -> dict[str, Replica]:
        """Return the replicas there are and were, by address."""
        return self.server.replicas.known()

    # -- whether it is up, and what it is like -----------------------------------------------------------------------

    def ping(self) -> bool:
        """Tell whether the server answers PING within `read_seconds`, and tell the breaker."""
        return self.server.ping()

    def reason(self) -> str:
        """Return since when and why the server is taken to be down, or ""."""
        return self.server.reason()

    def report_outages(self) -> None:
        """Log from now on when the server is down, and when it is back."""
        self.server.report_outages()

    def is_down(self, page: str) -> bool:  # noqa: ARG002 - this store keeps every page it is asked for
        """Tell whether the breaker is not closed."""
        return self.server.is_down()

    def probe(self) -> None:
        """Ping the server if it is down and the breaker's time has come."""
        self.server.probe()

    def status(self, writer: str, partitions: Sequence[int], *, strays: bool = False) -> list[ServerStatus]:
        """Return one row: what the server is like, and how many pages it has in these partitions.

        The row of a server that does not answer has the reason instead. With `strays`, the row warns of counts in
        other partitions.
        """
        try:
            said = self.server.describe()
            held = count_pages_of(self.server.ask_each, writer, partitions, strays=strays)
        except StoreError as error:
            return [self.server.status_when_down(len(partitions), error.reason)]
        except RedisError as error:
            return [self.server.status_when_down(len(partitions), explain(self.name, error).reason)]
        pages, address = sum(held.pages.values()), self.server.address
        warnings = (*said.warnings, *held.warnings(self.name))
        return [ServerStatus(address, partitions=len(partitions), up=True, pages=pages, said=said, warnings=warnings)]

    def run(self, commands: Sequence[Command], shapes: Iterable[Shape] = repeat(anything)) -> list[Any]:
        """Run commands in one round trip, over one connection; return the reply or the RedisError of each."""
        return self.server.run(commands, shapes)

    def close(self) -> None:
        """Close all connections."""
        self.server.close()


def _not_in_its_place(applied: Applied, reply: Any) -> Applied:
    """Say why a batch was not applied, given what `moving.inspect` said of its partition's place."""
    if isinstance(reply, RedisError):
        return applied
    place = moving.Place.from_bytes(reply[0])
    if place.kind == "moved":
        reason = f"partition {applied.partition} has moved to {place.shard}"
        return applied._replace(error=reason, moved_to=place.shard)
    if place.kind == "?":
        return applied
    return applied._replace(error="a partition is being moved; the next flush brings its visits")
