"""ClusterStore: a Redis Cluster as one store. Each partition is one key, so every atomic step stays in one slot.

The engine is Redis Cluster: it keeps the slots, moves them, and promotes replicas. This module sends each command to
the server that has its slot. redis-py connects, authenticates and parses; its RedisCluster is not used, because it
sends a command again after a lost connection, which would count visits twice, and asks the whole cluster anew, dead
servers included, in the request that met one.

What is sent a second time here is what a server replied to with MOVED or ASK: "I did not do it, ask there".

A replica is promoted with what it had received. It then has older watermarks than were confirmed, and the next flush
sends it what is missing from the retained segments. They reach far enough because `persist` is true only when every
replica that the cluster may promote has everything on its disk, and because a replica out of touch with its primary
for long (cluster-replica-validity-factor) is not promoted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import repeat
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from redis.exceptions import AskError, ConnectionError, MovedError, RedisError  # noqa: A004 - redis-py's name

from visit_counter.config.settings import Shard
from visit_counter.errors import StoreError
from visit_counter.model.visits import Tally
from visit_counter.shards.cluster.slots import SlotMap, are_slots
from visit_counter.shards.contract import NOT_A_PARTITION, Applied, Batch, Store, Stored
from visit_counter.shards.identity import KEY as IDENTITY_KEY
from visit_counter.shards.identity import Identity
from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.redis.applying import applied_of, includes
from visit_counter.shards.redis.commands import (
    STORED,
    add_command,
    losses_command,
    offer_command,
    read_command,
    stored_of,
    text_of,
    watermark_command,
)
from visit_counter.shards.redis.describe import ServerStatus
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.inspection import Held, count_pages_of, warn_of_unknown_partitions
from visit_counter.shards.redis.pools import join_host, server_url, split_host, target_of
from visit_counter.shards.redis.replicas import Replicas
from visit_counter.shards.redis.shapes import anything, is_number, is_text, is_text_or_nothing
from visit_counter.shards.redis.store import CHUNK_READS, RedisStore, all_of
from visit_counter.shards.redis.wire import explain, is_elsewhere
from visit_counter.shards.ring import PARTITIONS, partition_of
from visit_counter.shards.shard_map import KEY as SHARD_MAP_KEY
from visit_counter.shards.shard_map import public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from visit_counter.shards.rebalance.moving import Command
    from visit_counter.shards.redis.applying import Unsynced
    from visit_counter.shards.redis.replicas import Replica
    from visit_counter.shards.redis.shapes import Shape
    from visit_counter.shards.redis.store import Timeouts

T = TypeVar("T")

# From the old owner to the new one, and once more where a slot moves on meanwhile.
_MAX_HOPS = 5


class ClusterStore(Store):
    """Counts in one cluster. Nothing is opened before the first call. `options` are those of RedisStore, per server.

    Each server has its own connections, breaker and time-outs, so one that is down does not affect the slots of others.
    """

    def __init__(self, shard: Shard, **options: Unpack[Timeouts]) -> None:
        self.name = shard.name
        self.address = public_url(shard.url)
        self._target = target_of(shard)
        self._options = options
        self._lock = Lock()
        self._nodes: dict[str, RedisStore] = {}
        self._reports_outages = False
        # What `persist` has to find on disk, of partitions that have left the server it was applied on.
        self._leaving: Unsynced = {}
        # The partitions that `one_per_server` returned last, and the server that each stands for.
        self._chosen: dict[int, str] = {}
        self._replicas = Replicas()
        self.slots = SlotMap(self._candidates, self._ask_slots)

    # -- the contract ------------------------------------------------------------------------------------------------

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`."""
        commands = [(partition_of(page), add_command(page, visits))]
        replies = self._route(commands, lambda node, mine, asking: node.ask_add(mine, is_number, asking=asking))
        return int(self._answers(replies)[0])

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            commands = [(partition_of(page), read_command(writer, page)) for page in pages[first : first + CHUNK_READS]]
            stored += [stored_of(self.name, reply) for reply in self._answers(self._ask_to_read(commands, STORED))]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch; the servers are sent theirs side by side, and one that is down fails its own only."""
        items = [(batch.partition, batch) for batch in batches]
        replies = self._apply(writer, items)
        return [applied_of(self.name, batch, reply) for (_, batch), reply in zip(items, replies, strict=True)]

    def _apply(self, writer: str, items: Sequence[tuple[int, Batch]]) -> list[Any]:
        return self._route(items, lambda node, mine, asking: node.applier.send(writer, mine, asking=asking))

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
        replies = self.ask_each(commands, repeat(is_text_or_nothing))
        return [NOT_A_PARTITION.encode() if is_elsewhere(reply) else reply for reply in replies]

    def _part_fails(self, partition: int, error: RedisError) -> StoreError:
        """Return the error of a partition. All partitions of a server have the same text, so that it is told once."""
        failed = explain(self.name, error)
        where = self.slots.owner(partition) or "no server"
        return type(failed)(self.name, f"{where}: {failed.reason}")

    def read_shard_map(self) -> str:
        """Return the shard map kept here, or ""; waits up to `read_seconds`."""
        return self._read_text(SHARD_MAP_KEY)

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; waits up to `apply_seconds`."""
        return bytes(self._answers(self._run(offer_command(text), is_text))[0]).decode(errors="replace")

    def read_identity(self) -> Identity:
        """Return who the cluster says it is; waits up to `read_seconds`."""
        return Identity.from_text(self._read_text(IDENTITY_KEY))

    def name_server(self, identity: Identity) -> None:
        """Tell a cluster that says nothing who it is; waits up to `apply_seconds`."""
        self._answers(self._run((b"SET", IDENTITY_KEY, identity.to_text().encode(), b"NX"), anything))

    def _read_text(self, key: bytes) -> str:
        replies = self._ask_to_read([(0, pack(b"GET", key))], is_text_or_nothing)
        return (self._answers(replies)[0] or b"").decode(errors="replace")

    def _run(self, command: Command, shape: Shape) -> list[Any]:
        return self.ask_each([(0, pack(*command))], repeat(shape))

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition by a number; waits up to `apply_seconds` for each reply."""
        commands = [(partition, losses_command(partition, number)) for partition, number in by.items()]
        replies = self.ask_each(commands, repeat(is_number))
        return {partition for partition, reply in zip(by, replies, strict=True) if isinstance(reply, int)}

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on the disks of the servers that have it now, and of all their replicas."""
        if not self.slots.refresh(force=True):
            return False
        if not self._follow_unsynced():
            return False
        chosen, self._chosen = self._chosen, {}
        # A batch may have been redirected to another server. Then nothing is known about the disk of this one.
        if not all(self._node(address).applier.is_unsynced(at) for at, address in chosen.items()):
            return False
        answers = in_parallel([partial(node.persist, timeout_seconds) for node in self.nodes()])
        if False in answers:
            return False
        return None if None in answers else True

    def _follow_unsynced(self) -> bool:
        """Look for what was applied to partitions that have left their server; tell whether all of it was found.

        It is looked for where MOVED and ASK lead. Its watermark is written again there, so that the server which has
        the partition now confirms it.
        """
        with self._lock:
            nodes = dict(self._nodes)
        for address, node in nodes.items():
            self._leaving |= node.applier.release_moved(partial(self._is_elsewhere, address))
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

    def remember_replicas(self, known: Mapping[str, Replica]) -> None:
        """Take these for the replicas that `persist` has to wait for, beside those it finds; it adds to them."""
        self._replicas.remember(known)

    def known_replicas(self) -> dict[str, Replica]:
        """Return the replicas there are and were, by address."""
        return self._replicas.known()

    def one_per_server(self, partitions: Sequence[int]) -> list[int]:
        """Return one of these partitions for each server of the cluster that has any."""
        by_address = {self.slots.owner(partition): partition for partition in partitions}
        self._chosen = {partition: address for address, partition in by_address.items() if address}
        return list(by_address.values())

    def ping(self) -> bool:
        """Tell whether every partition has a server and all of these answer."""
        self.slots.refresh(force=True)
        answers = in_parallel([node.ping for node in self.nodes()])
        return all(answers) and self.slots.covers_all()

    def reason(self) -> str:
        """Return which servers are taken to be down, and how many partitions have none."""
        nodes = [f"{node.server}: {node.reason()}" for node in self.nodes() if node.reason()]
        without = PARTITIONS - sum(map(bool, map(self.slots.owner, range(PARTITIONS))))
        if without:
            said = f" ({explain(self.name, self.slots.error).reason})" if self.slots.error else ""
            nodes.append(f"no server has {without} of {PARTITIONS} partitions{said}")
        return "; ".join(nodes)

    def report_outages(self) -> None:
        """Log from now on when a server is down, and when it is back."""
        with self._lock:
            self._reports_outages = True
            for node in self._nodes.values():
                node.report_outages()

    def owner(self, page: str) -> str:
        """Return the server that has the page, so that pages of other servers do not wait for it."""
        return f"{self.name} {self.slots.owner(partition_of(page))}"

    def is_down(self, page: str) -> bool:
        """Tell whether the server of a page is known and known not to answer."""
        partition = partition_of(page)
        return bool(self.slots.owner(partition)) and not self._reachable(partition)

    def needs_probe(self) -> bool:
        """Tell whether a server that has partitions is known not to answer."""
        return any(node.needs_probe() for node in self.nodes())

    def probe(self) -> None:
        """Ask the cluster which servers have the partitions, and ping the servers that are down."""
        self.slots.refresh()
        in_parallel([node.probe for node in self.nodes() if node.needs_probe()])

    def status(self, writer: str, partitions: Sequence[int], *, strays: bool = False) -> list[ServerStatus]:
        """Return what each server is like that has any of the partitions, and last what has no server.

        The pages are counted wherever MOVED and ASK lead, because a slot may be moving. With `strays`, the first row
        warns of counts in other partitions.
        """
        self.slots.refresh(force=True)
        try:
            held = count_pages_of(self.ask_each, writer, partitions, strays=strays)
        except RedisError as error:
            held = Held({}, dict.fromkeys(partitions, error))
        by_address: dict[str, list[int]] = {}
        for partition in partitions:
            by_address.setdefault(self.slots.owner(partition), []).append(partition)
        without = by_address.pop("", [])
        rows = in_parallel(
            [partial(self._status_of, self._node(at), mine, held) for at, mine in sorted(by_address.items())]
        )
        if held.strays and rows:
            rows[0] = replace(rows[0], warnings=(*rows[0].warnings, *held._replace(errors={}).warnings(self.name)))
        if without:
            addresses = ",".join(join_host(*host) for host in self._target.hosts)
            why = "no server has these partitions"
            if self.slots.error:
                why = explain(self.name, self.slots.error).reason
            rows.append(ServerStatus(addresses, partitions=len(without), error=why))
        return rows

    def _status_of(self, node: RedisStore, partitions: Sequence[int], held: Held) -> ServerStatus:
        """Return the row of a server, given what was found in the partitions of all."""
        try:
            said = node.describe()
        except StoreError as error:
            return node.status_when_down(len(partitions), error.reason)
        mine = Held({}, {at: held.errors[at] for at in partitions if at in held.errors})
        pages = sum(held.pages.get(at, 0) for at in partitions)
        warnings = (*said.warnings, *mine.warnings(self.name), *warn_of_unknown_partitions(node.ask_each))
        return ServerStatus(node.server, partitions=len(partitions), up=True, pages=pages, said=said, warnings=warnings)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            nodes = list(self._nodes.values())
        for node in nodes:
            node.close()

    # -- servers -----------------------------------------------------------------------------------------------------

    def nodes(self) -> list[RedisStore]:
        """Return the servers that have partitions, as far as known."""
        return [self._node(address) for address in self.slots.primaries()]

    def _node(self, address: str) -> RedisStore:
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                url = server_url(self._target, *split_host(address))
                node = RedisStore(
                    # Its errors name the whole cluster and the address.
                    Shard(f"{self.name} ({address})", url),
                    known_replicas=partial(self.slots.replicas, address),
                    replicas=self._replicas,
                    primary=address,
                    **self._options,
                )
                if self._reports_outages:
                    node.report_outages()
                self._nodes[address] = node
            return node

    def _candidates(self) -> Iterator[str]:
        """Give the servers that may be asked about the cluster, those that answered last first."""
        with self._lock:
            known = list(self._nodes.items())
        yield from (address for address, node in known if node.breaker.state == "closed")
        yield from (join_host(*host) for host in self._target.hosts)
        yield from (address for address, _ in known)

    def _ask_slots(self, address: str, command: bytes) -> Any:
        (reply,) = self._node(address).ask_read([command], are_slots)
        return reply

    def _is_elsewhere(self, address: str, partition: int) -> bool:
        return self.slots.owner(partition) not in ("", address)

    def ask_each(self, commands: Sequence[tuple[int, bytes]], shapes: Iterable[Shape]) -> list[Any]:
        """Exchange the packed commands of partitions with the servers that have them, with a flush's time-out."""
        items = [(at, (command, shape)) for (at, command), shape in zip(commands, shapes, strict=False)]

        def send(node: RedisStore, mine: list[tuple[bytes, Shape]], asking: bool) -> list[Any]:
            return node.ask_with_shapes([command for command, _ in mine], [shape for _, shape in mine], asking=asking)

        return self._route(items, send)

    def _ask_to_read(self, commands: Sequence[tuple[int, bytes]], shape: Shape) -> list[Any]:
        return self._route(commands, lambda node, mine, asking: node.ask_read(mine, shape, asking=asking))

    # -- routing -----------------------------------------------------------------------------------------------------

    def _route(
        self, items: Sequence[tuple[int, T]], send: Callable[[RedisStore, list[T], bool], list[Any]]
    ) -> list[Any]:
        """Have each (partition, item) sent to its server, all of a server in one go; return what came for each.

        The flag of `send` tells the server to accept commands for partitions that are being moved to it.
        """
        if any(not self._reachable(at) for at, _ in items):
            # A caller that knows a server uses that one while another thread asks the cluster.
            self.slots.refresh(wait=any(not self.slots.owner(at) for at, _ in items))
        replies: list[Any] = [None] * len(items)
        left = {index: (self.slots.owner(at), False) for index, (at, _) in enumerate(items)}
        for _ in range(_MAX_HOPS):
            for index, reply in self._send_all(left, items, send):
                replies[index] = reply
            left = {
                index: self._redirected(items[index][0], address, replies[index])
                for index, (address, _) in left.items()
                if isinstance(replies[index], AskError)
            }
            if not left:
                break
        return replies

    def _send_all(
        self,
        left: dict[int, tuple[str, bool]],
        items: Sequence[tuple[int, T]],
        send: Callable[[RedisStore, list[T], bool], list[Any]],
    ) -> Iterator[tuple[int, Any]]:
        """Send the items of these indexes to these (address, asking); give what came for each index."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for index, place in left.items():
            groups.setdefault(place, []).append(index)

        def call(address: str, indexes: list[int], asking: bool) -> list[Any]:
            if not address:
                unknown = ConnectionError("no server of the cluster is known to have this partition")
                return [self.slots.error or unknown] * len(indexes)
            return send(self._node(address), [items[index][1] for index in indexes], asking)

        answers = in_parallel([partial(call, address, mine, asking) for (address, asking), mine in groups.items()])
        for mine, answer in zip(groups.values(), answers, strict=True):
            yield from zip(mine, answer, strict=True)

    def _redirected(self, partition: int, asked: str, reply: AskError) -> tuple[str, bool]:
        """Return where a MOVED or an ASK points to, and whether it is an ASK."""
        # A server that does not know the host means its own.
        address = join_host(reply.host or split_host(asked)[0], reply.port)
        if not isinstance(reply, MovedError):
            return address, True
        self.slots.note_moved(partition, address)
        return address, False

    def _reachable(self, partition: int) -> bool:
        """Tell whether the server of a partition is known and up; if not, the cluster may have promoted another."""
        address = self.slots.owner(partition)
        return bool(address) and self._node(address).breaker.state == "closed"

    def _answers(self, replies: list[Any]) -> list[Any]:
        """Return the replies if all are; raises StoreError for the first that is an error."""
        for reply in replies:
            if isinstance(reply, RedisError):
                raise explain(self.name, reply)
        return replies
