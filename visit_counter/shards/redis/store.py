"""RedisStore: a shard, which is one Redis or Valkey server; with sentinels, whichever of several they say it is.

With sentinels, redis-py asks them for the primary whenever a connection is opened. A connection that fails, or that
says READONLY because its server has been demoted, is closed, so the next call finds the new primary.
"""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypedDict

from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - redis-py's name

from visit_counter.errors import PartitionMovedError, StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.shards.contract import NOT_A_PARTITION, Applied, Batch, Store, Stored
from visit_counter.shards.identity import KEY as IDENTITY_KEY
from visit_counter.shards.identity import Expected, Identity
from visit_counter.shards.rebalance import moving
from visit_counter.shards.redis.applying import Applier
from visit_counter.shards.redis.breaker import Breaker
from visit_counter.shards.redis.commands import (
    LOSSES_FIELD,
    add_command,
    losses_command,
    offer_command,
    partition_key,
    stored_of,
    text_of,
    watermark_field,
)
from visit_counter.shards.redis.describe import Description, ServerStatus, describe, read_info
from visit_counter.shards.redis.exchange import impossible, pack
from visit_counter.shards.redis.inspection import count_pages_of, warn_of_unknown_partitions
from visit_counter.shards.redis.replicas import Replicas
from visit_counter.shards.redis.shapes import (
    anything,
    are_pairs,
    either,
    is_empty,
    is_number,
    is_pong,
    is_text,
    is_text_or_nothing,
    sequence,
    values,
)
from visit_counter.shards.redis.wire import Wire, explain, is_down, is_elsewhere
from visit_counter.shards.ring import partition_of
from visit_counter.shards.shard_map import KEY as SHARD_MAP_KEY
from visit_counter.shards.shard_map import public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from visit_counter.config.settings import Shard
    from visit_counter.shards.redis.replicas import Replica
    from visit_counter.shards.redis.shapes import Shape

log = logging.getLogger(__name__)


class Timeouts(TypedDict, total=False):
    """The time-outs of RedisStore by name, in seconds."""

    connect_seconds: float
    read_seconds: float
    add_seconds: float
    apply_seconds: float


# Bounds what waits in the buffers of both sides in one round trip.
CHUNK_READS = 1000


class RedisStore(Store):
    """Counts on one server. Nothing is opened before the first call.

    There are three kinds of connections, each with its own time-out. A read waits for a tenth of a second at most. A
    visit that is counted at once (`add`) may wait for the server's disk. A flush may take longer. Reads and adds ask
    the breaker first, and fail at once while the shard is down. The results of all calls are reported to the breaker.
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
        replicas: Replicas | None = None,
        primary: str = "",
    ) -> None:
        self.name = shard.name
        self._address = shard.address
        self.address = public_url(shard.url)
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
        self._replicas, self._primary = replicas or Replicas(), primary
        self._listed_replicas = known_replicas or self._flushes.known_replicas
        # WAITAOF gets half of the time-out, so that its reply arrives before this side gives up the connection.
        self.applier = Applier(self.name, self._flushes, apply_seconds / 2, self._report, self._due_replicas)

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`.

        Raises PartitionMovedError if another shard has the page, StoreRefusedError while it is being moved there.
        """
        (count,) = self.ask_add([add_command(page, visits)], is_number)
        if is_elsewhere(count):
            # Raises PartitionMovedError, unless the partition is still being moved.
            self._values(self.ask_add, [(partition_of(page), [page.encode()])])
            raise StoreRefusedError(self.name, f"partition {partition_of(page)} is being moved")
        return int(self._answers([count])[0])

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        mark = watermark_field(writer)
        for first in range(0, len(pages), CHUNK_READS):
            wanted = [
                (partition_of(page), (page.encode(), mark, LOSSES_FIELD)) for page in pages[first : first + CHUNK_READS]
            ]
            stored += [stored_of(self.name, reply) for reply in self._values(self.ask_read, wanted)]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch, 64 or about 1 MB in a round trip; waits up to `apply_seconds` for each reply."""
        results = self.applier.apply(writer, list(batches))
        elsewhere = [index for index, result in enumerate(results) if result.error and "WRONGTYPE" in result.error]
        if elsewhere:
            places = self.run(
                [moving.inspect(results[index].partition) for index in elsewhere], repeat(moving.INSPECTED)
            )
            for index, place in zip(elsewhere, places, strict=True):
                results[index] = _waiting(results[index], place)
        return results

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply."""
        return all_of(self.watermarks_each(writer, partitions))

    def watermarks_each(self, writer: str, partitions: Sequence[int]) -> list[str | StoreError]:
        """Return the writer's watermark token in each partition, or why that one's cannot be had.

        A shard that is down is pinged first, because a ping has the shortest time-out. The next flush tries again.
        """
        if self.breaker.state != "closed" and not self.ping():
            raise StoreUnavailableError(self.name, self.reason())
        field = watermark_field(writer)
        found = self._values(self.ask_flush, [(at, (field,)) for at in partitions], strange=[NOT_A_PARTITION.encode()])
        return [text_of(mark or b"") for (mark,) in found]

    def read_shard_map(self) -> str:
        """Return the shard map kept here, or ""; waits up to `read_seconds`."""
        (text,) = self._answers(self._ask_who([pack(b"GET", SHARD_MAP_KEY)]))
        return (text or b"").decode(errors="replace")

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; waits up to `apply_seconds`."""
        (kept,) = self._answers(self.run([offer_command(text)], [is_text]))
        return bytes(kept).decode(errors="replace")

    def read_identity(self) -> Identity:
        """Return who the server says it is; waits up to `read_seconds`."""
        (text,) = self._answers(self._ask_who([pack(b"GET", IDENTITY_KEY)]))
        return Identity.from_text((text or b"").decode(errors="replace"))

    def name_server(self, identity: Identity) -> None:
        """Tell a server that says nothing who it is; waits up to `apply_seconds`."""
        self._answers(self.run([(b"SET", IDENTITY_KEY, identity.to_text().encode(), b"NX")], [anything]))

    def expect(self, identity: Identity) -> None:
        """Speak from the next connection on with no server that says it is another."""
        self._expected.identity = identity

    def run(self, commands: Sequence[moving.Command], shapes: Iterable[Shape] | None = None) -> list[Any]:
        """Run commands in one round trip, over one connection; return the reply or the RedisError of each."""
        return self.ask_with_shapes([pack(*command) for command in commands], shapes or repeat(anything))

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition by a number; waits up to `apply_seconds` for each reply."""
        commands = [(partition, losses_command(partition, number)) for partition, number in by.items()]
        replies = self.ask_each(commands, repeat(is_number))
        return {partition for partition, reply in zip(by, replies, strict=True) if isinstance(reply, int)}

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on disk, for half of `apply_seconds` at most; None without WAITAOF.

        Returns False at once while the shard is down, so that the flush does not wait once more.
        """
        if self.breaker.state != "closed":
            return False
        return self.applier.persist(timeout_seconds)

    def remember_replicas(self, known: Mapping[str, Replica]) -> None:
        """Take these for the replicas that `persist` has to wait for, beside those it finds; it adds to them."""
        self._replicas.remember(known)

    def known_replicas(self) -> dict[str, Replica]:
        """Return the replicas there are and were, by address."""
        return self._replicas.known()

    def _due_replicas(self, address: str, connected: Sequence[str]) -> int | None:
        """Return how many replicas must have what was applied; None while one that must is away."""
        if self._replicas.see(self._primary, address, connected):
            return None
        return max(len(connected), self._listed_replicas())

    def ping(self) -> bool:
        """Tell whether the server answers PING within `read_seconds`, and tell the breaker."""
        (reply,) = self._reads.ask([pack(b"PING")], [is_pong])
        self._report([reply])
        return not isinstance(reply, RedisError)

    def reason(self) -> str:
        """Return since when and why the server is taken to be down, or ""."""
        if self.breaker.state == "closed":
            return ""
        why = f" ({self._trouble})" if self._trouble else ""
        return f"no answer for {self.breaker.since:.1f} s{why}"

    def report_outages(self) -> None:
        """Log from now on when the server is down, and when it is back."""
        self._reports_outages = True

    def is_down(self, page: str) -> bool:  # noqa: ARG002 - this store keeps every page it is asked for
        """Tell whether the breaker is not closed."""
        return self.breaker.state != "closed"

    def probe(self) -> None:
        """Ping the server if it is down and the breaker's time has come."""
        if self.breaker.state != "closed" and self.breaker.allows():
            self.ping()

    def describe(self) -> Description:
        """Return what the server is and how it is set up; raises StoreError. Waits up to `apply_seconds`."""
        settings = (b"appendfsync", b"cluster-require-full-coverage")
        # One command for each setting: Redis 6 allows only one name in CONFIG GET.
        commands = [(b"INFO",), *((b"CONFIG", b"GET", name) for name in settings)]
        replies = self.run(commands, [is_text, *(are_pairs for _ in settings)])
        if isinstance(replies[0], RedisError):
            raise explain(self.name, replies[0])
        return describe(read_info(replies))

    def status(self, writer: str, partitions: Sequence[int], *, strays: bool = False) -> list[ServerStatus]:
        """Return one row: what the server is like, and how many pages it has in these partitions.

        The row of a server that does not answer has the reason instead. With `strays`, the row warns of counts in
        other partitions.
        """
        try:
            said = self.describe()
            held = count_pages_of(self.ask_each, writer, partitions, strays=strays)
            warnings = (*said.warnings, *held.warnings(self.name), *warn_of_unknown_partitions(self.ask_each))
        except StoreError as error:
            return [self.status_when_down(len(partitions), error.reason)]
        except RedisError as error:
            return [self.status_when_down(len(partitions), explain(self.name, error).reason)]
        pages = sum(held.pages.values())
        return [
            ServerStatus(self.server, partitions=len(partitions), up=True, pages=pages, said=said, warnings=warnings)
        ]

    def status_when_down(self, partitions: int, reason: str) -> ServerStatus:
        """Return the row of a server that does not answer."""
        return ServerStatus(self.server or self._address, partitions=partitions, error=reason)

    @property
    def server(self) -> str:
        """The server as host:port, for people; with sentinels the primary they named last, or nothing."""
        return self._flushes.address

    def ask_each(self, commands: Sequence[tuple[int, bytes]], shapes: Iterable[Shape]) -> list[Any]:
        """Exchange the packed commands of partitions, with a flush's time-out."""
        return self.ask_with_shapes([command for _, command in commands], shapes)

    def close(self) -> None:
        """Close all connections."""
        self.applier.close()
        for wire in (self._reads, self._adds, self._flushes, self._questions):
            wire.close()

    # -- packed commands: what came for each, its reply or the RedisError ---------------------------------------

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

    def _ask_if_up(self, wire: Wire, commands: Sequence[bytes], shape: Shape, *, asking: bool) -> list[Any]:
        if not self.breaker.allows():
            return [ConnectionError(f"{self.reason()}; not asked again yet")] * len(commands)
        replies = wire.ask(commands, repeat(shape), asking=asking)
        self._report(replies)
        return replies

    def _ask_who(self, commands: Sequence[bytes]) -> list[Any]:
        """Ask a server that may be the wrong one. Only a missing answer is reported to the breaker."""
        if self.breaker.state != "closed" and not self._expected.identity.names and not self.breaker.allows():
            return [ConnectionError(f"{self.reason()}; not asked again yet")] * len(commands)
        replies = self._questions.ask(commands, repeat(is_text_or_nothing))
        if not self._expected.identity.names or any(map(is_down, replies)):
            self._report(replies)
        return replies

    def _values(
        self,
        ask: Callable[[list[bytes], Shape], list[Any]],
        wanted: Sequence[tuple[int, Sequence[bytes]]],
        *,
        strange: list[bytes | None] | None = None,
    ) -> list[list[bytes | None]]:
        """Return the values of fields of partitions, also of one that is frozen here.

        `strange`: what to return where something else than a partition is found; if it is None, StoreRefusedError is
        raised there. Raises PartitionMovedError with all partitions that are on other shards now.
        """
        if not wanted:
            return []
        shape = values(len(wanted[0][1]))  # the same number of fields in each
        replies = ask([pack(b"HMGET", partition_key(at), *fields) for at, fields in wanted], shape)
        elsewhere = [index for index, reply in enumerate(replies) if is_elsewhere(reply)]
        if not elsewhere:
            return self._answers(replies)
        self._answers([reply for reply in replies if not is_elsewhere(reply)])
        placed = sequence(is_text, either(shape, is_empty))
        found = ask([pack(*moving.find(*wanted[index])) for index in elsewhere], placed)
        self._answers([reply for reply in found if not is_elsewhere(reply)])
        moved: dict[int, str] = {}
        for index, reply in zip(elsewhere, found, strict=True):
            # The key has neither a string nor a hash, so the script was refused, too.
            text, fields = (b"?", []) if is_elsewhere(reply) else reply
            place = moving.Place.from_bytes(text)
            if place.kind == "?":
                if strange is None:
                    raise StoreRefusedError(self.name, f"WRONGTYPE visits:{{{wanted[index][0]}}} is not a partition")
                replies[index] = strange
                continue
            if place.kind == "moved":
                moved[wanted[index][0]] = place.shard
            elif len(fields) != len(wanted[index][1]):
                raise StoreUnavailableError(self.name, str(impossible(fields)))
            replies[index] = fields
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
        """Report to the breaker, and log the beginning and the end of an outage once each."""
        failed = next(filter(is_down, replies), None)
        if failed is None:
            if (
                self.breaker.state != "closed"
                and (seconds := self.breaker.success()) is not None
                and self._reports_outages
            ):
                log.warning("shard %s answers again; it was down for %.1f s", self.name, seconds)
            return
        self._trouble = explain(self.name, failed).reason
        if self.breaker.failure() and self._reports_outages:
            log.warning("shard %s is down: %s", self.name, self._trouble)


def all_of(found: Sequence[str | StoreError]) -> list[str]:
    """Return the watermarks if all could be had; raises the first error."""
    for each in found:
        if isinstance(each, StoreError):
            raise each
    return list(found)  # type: ignore[arg-type]  # none of them is an error


def _waiting(applied: Applied, reply: Any) -> Applied:
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
