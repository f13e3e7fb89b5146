"""ClusterStore: a Redis Cluster as one store. Each partition is one key, so every atomic step stays in one slot.

A replica is promoted with what it had received. It then has older watermarks than were confirmed, and the next flush
sends it what is missing from the retained segments. They reach far enough because `persist` is true only when every
replica that the cluster may promote has everything on its disk, and because a replica out of touch with its primary
for long (cluster-replica-validity-factor) is not promoted.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Unpack

from redis.exceptions import RedisError

from visit_counter.model.visits import Tally
from visit_counter.shards.cluster.servers import ClusterServers
from visit_counter.shards.cluster.status import status_of
from visit_counter.shards.contract import NOT_A_PARTITION, Applied, Batch, Look, Store, Stored, all_of
from visit_counter.shards.identity import KEY as IDENTITY_KEY
from visit_counter.shards.identity import Identity
from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.redis.applying import applied_of, includes
from visit_counter.shards.redis.commands import (
    LOOK,
    STORED,
    add_command,
    look_command,
    look_or_none,
    losses_command,
    offer_command,
    read_command,
    stored_of,
    text_of,
    watermark_command,
)
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.reading import answers_of
from visit_counter.shards.redis.shapes import anything, is_number, is_text, is_text_or_nothing
from visit_counter.shards.redis.store import CHUNK_READS
from visit_counter.shards.redis.wire import explain, is_elsewhere
from visit_counter.shards.ring import PARTITIONS, partition_of
from visit_counter.shards.shard_map import KEY as SHARD_MAP_KEY
from visit_counter.shards.shard_map import public_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visit_counter.config.settings import Shard
    from visit_counter.errors import StoreError
    from visit_counter.shards.redis.applying import Unsynced
    from visit_counter.shards.redis.describe import ServerStatus
    from visit_counter.shards.redis.exchange import Command
    from visit_counter.shards.redis.replicas import Replica
    from visit_counter.shards.redis.server import Timeouts
    from visit_counter.shards.redis.shapes import Shape


class ClusterStore(Store):
    """Counts in one cluster. Nothing is opened before the first call. `timeouts` are those of each server."""

    def __init__(self, shard: Shard, **timeouts: Unpack[Timeouts]) -> None:
        self.name = shard.name
        self.address = public_url(shard.url)
        self.servers = ClusterServers(shard, **timeouts)
        self._slots = self.servers.slots
        # What `persist` has to find on disk, of partitions that have left the server it was applied on.
        self._leaving: Unsynced = {}
        # The partitions that `one_per_server` returned last, and the server that each stands for.
        self._chosen: dict[int, str] = {}

    # -- pages and partitions ----------------------------------------------------------------------------------------

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`."""
        commands = [(partition_of(page), add_command(page, visits))]
        replies = self.servers.route(
            commands, lambda server, mine, asking: server.ask_add(mine, is_number, asking=asking)
        )
        return int(answers_of(self.name, replies)[0])

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            commands = [(partition_of(page), read_command(writer, page)) for page in pages[first : first + CHUNK_READS]]
            replies = answers_of(self.name, self.servers.ask_to_read(commands, STORED))
            stored += [stored_of(self.name, reply) for reply in replies]
        return stored

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        """Return what tells whether each partition has changed; None where its server does not say."""
        commands = [(partition, look_command(writer, partition)) for partition in partitions]
        return [look_or_none(self.name, reply) for reply in self.servers.ask_to_read(commands, LOOK)]

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch; the servers are sent theirs side by side, and one that is down fails its own only."""
        items = [(batch.partition, batch) for batch in batches]
        replies = self._apply(writer, items)
        return [applied_of(self.name, batch, reply) for (_, batch), reply in zip(items, replies, strict=True)]

    def _apply(self, writer: str, items: Sequence[tuple[int, Batch]]) -> list[Any]:
        return self.servers.route(items, lambda server, mine, asking: server.applier.send(writer, mine, asking=asking))

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply."""
        return all_of(self.watermarks_each(writer, partitions))

    def watermarks_each(self, writer: str, partitions: Sequence[int]) -> list[str | StoreError]:
        """Return the writer's watermark token in each partition, or why that one's cannot be had."""
        replies = self._watermarks(writer, partitions)
        return [
            self._part_fails(at, reply) if isinstance(reply, RedisError) else text_of(reply or b"")
            for at, reply in zip(partitions, replies, strict=True)
        ]

    def _watermarks(self, writer: str, partitions: Sequence[int]) -> list[Any]:
        commands = [(partition, watermark_command(writer, partition)) for partition in partitions]
        # A cluster moves slots by its own means. So a key without a hash is never a partition that is being moved.
        replies = self.servers.ask_each(commands, repeat(is_text_or_nothing))
        return [NOT_A_PARTITION.encode() if is_elsewhere(reply) else reply for reply in replies]

    def _part_fails(self, partition: int, error: RedisError) -> StoreError:
        """Return the error of a partition. All partitions of a server have the same text: it is reported once."""
        failed = explain(self.name, error)
        where = self._slots.owner(partition) or "no server"
        return type(failed)(self.name, f"{where}: {failed.reason}")

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition by a number; waits up to `apply_seconds` for each reply."""
        commands = [(partition, losses_command(partition, number)) for partition, number in by.items()]
        replies = self.servers.ask_each(commands, repeat(is_number))
        return {partition for partition, reply in zip(by, replies, strict=True) if isinstance(reply, int)}

    # -- the shard map, and who the cluster is -----------------------------------------------------------------------

    def read_shard_map(self) -> str:
        """Return the shard map kept here, or ""; waits up to `read_seconds`."""
        return self._read_text(SHARD_MAP_KEY)

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; waits up to `apply_seconds`."""
        return bytes(self._run(offer_command(text), is_text)).decode(errors="replace")

    def read_identity(self) -> Identity:
        """Return who the cluster says it is; waits up to `read_seconds`."""
        return Identity.from_text(self._read_text(IDENTITY_KEY))

    def name_server(self, identity: Identity) -> None:
        """Tell a cluster that says nothing who it is; waits up to `apply_seconds`."""
        self._run((b"SET", IDENTITY_KEY, identity.to_text().encode(), b"NX"), anything)

    def _read_text(self, key: bytes) -> str:
        replies = self.servers.ask_to_read([(0, pack(b"GET", key))], is_text_or_nothing)
        return (answers_of(self.name, replies)[0] or b"").decode(errors="replace")

    def _run(self, command: Command, shape: Shape) -> Any:
        return answers_of(self.name, self.servers.ask_each([(0, pack(*command))], [shape]))[0]

    # -- its disks and its replicas ----------------------------------------------------------------------------------

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on the disks of the servers that have it now, and of all their replicas."""
        if not self._slots.refresh(force=True):
            return False
        if not self._follow_unsynced():
            return False
        chosen, self._chosen = self._chosen, {}
        # A batch may have been redirected to another server. Then nothing is known about the disk of this one.
        if not all(self.servers.at(address).applier.is_unsynced(at) for at, address in chosen.items()):
            return False
        answers = in_parallel([partial(server.persist, timeout_seconds) for server in self.servers.with_partitions()])
        if False in answers:
            return False
        return None if None in answers else True

    def _follow_unsynced(self) -> bool:
        """Look for what was applied to partitions that have left their server; tell whether all of it was found.

        It is looked for where MOVED and ASK lead. Its watermark is written again there, so that the server which has
        the partition now confirms it.
        """
        for address, server in self.servers.ever_used().items():
            self._leaving |= server.applier.release_moved(partial(self._has_left, address))
        for writer in {writer for writer, _ in self._leaving}:
            marks = {at: mark for (owner, at), mark in self._leaving.items() if owner == writer}
            found = dict(zip(marks, self._watermarks(writer, list(marks)), strict=True))
            there = {
                at: (mark or b"").decode(errors="replace")
                for at, mark in found.items()
                if not isinstance(mark, RedisError)
            }
            again = [(at, Batch(at, mark, mark, Tally())) for at, mark in there.items() if includes(mark, marks[at])]
            for (at, batch), reply in zip(again, self._apply(writer, again), strict=True):
                if reply == batch.watermark.encode():
                    del self._leaving[writer, at]
        return not self._leaving

    def _has_left(self, address: str, partition: int) -> bool:
        return self._slots.owner(partition) not in ("", address)

    def remember_replicas(self, known: Mapping[str, Replica]) -> None:
        """Set the replicas that `persist` has to wait for; those that it finds are added to them."""
        self.servers.replicas.remember(known)

    def known_replicas(self) -> dict[str, Replica]:
        """Return the replicas there are and were, by address."""
        return self.servers.replicas.known()

    def one_per_server(self, partitions: Sequence[int]) -> list[int]:
        """Return one of these partitions for each server of the cluster that has any."""
        by_address = {self._slots.owner(partition): partition for partition in partitions}
        self._chosen = {partition: address for address, partition in by_address.items() if address}
        return list(by_address.values())

    # -- whether it is up, and what it is like -----------------------------------------------------------------------

    def ping(self) -> bool:
        """Tell whether every partition has a server and all of these answer."""
        self._slots.refresh(force=True)
        answers = in_parallel([server.ping for server in self.servers.with_partitions()])
        return all(answers) and self._slots.covers_all()

    def reason(self) -> str:
        """Return which servers are taken to be down, and how many partitions have none."""
        servers = self.servers.with_partitions()
        reasons = [f"{server.address}: {server.reason()}" for server in servers if server.reason()]
        without = PARTITIONS - sum(map(bool, map(self._slots.owner, range(PARTITIONS))))
        if without:
            said = f" ({explain(self.name, self._slots.error).reason})" if self._slots.error else ""
            reasons.append(f"no server has {without} of {PARTITIONS} partitions{said}")
        return "; ".join(reasons)

    def report_outages(self) -> None:
        """Log from now on when a server is down, and when it is back."""
        self.servers.report_outages()

    def owner(self, page: str) -> str:
        """Return the server that has the page, so that pages of other servers do not wait for it."""
        return f"{self.name} {self._slots.owner(partition_of(page))}"

    def is_down(self, page: str) -> bool:
        """Tell whether the server of a page is known and known not to answer."""
        partition = partition_of(page)
        return bool(self._slots.owner(partition)) and not self.servers.is_reachable(partition)

    def needs_probe(self) -> bool:
        """Tell whether a server that has partitions is known not to answer."""
        return any(server.is_down() for server in self.servers.with_partitions())

    def probe(self) -> None:
        """Ask the cluster which servers have the partitions, and ping the servers that are down."""
        self._slots.refresh()
        in_parallel([server.probe for server in self.servers.with_partitions() if server.is_down()])

    def status(self, writer: str, partitions: Sequence[int], *, strays: bool = False) -> list[ServerStatus]:
        """Return what each server is like that has any of the partitions, and last what has no server.

        With `strays`, the first row warns of counts in other partitions.
        """
        return status_of(self.name, self.servers, writer, partitions, strays=strays)

    def close(self) -> None:
        """Close all connections."""
        self.servers.close()
