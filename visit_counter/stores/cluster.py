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

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from redis.exceptions import AskError, ConnectionError, MovedError, RedisError  # noqa: A004 - redis-py's name

from visit_counter.ring import partition_of
from visit_counter.settings import Shard
from visit_counter.stores.applying import applied_of, text_of
from visit_counter.stores.base import NOT_A_PARTITION, Applied, Batch, Store, Stored
from visit_counter.stores.describe import Seen
from visit_counter.stores.parallel import in_parallel
from visit_counter.stores.pools import join_host, server_url, split_host, target_of
from visit_counter.stores.redis import (
    CHUNK_READS,
    RedisStore,
    add_command,
    offer,
    read_command,
    stored_of,
    topology_command,
    watermark_command,
)
from visit_counter.stores.topology import Topology
from visit_counter.stores.wire import explain, is_elsewhere, pack
from visit_counter.topology import public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from visit_counter.stores.redis import Patience

T = TypeVar("T")

# From the old owner to the new one, and once more where a slot moves on meanwhile.
_MAX_HOPS = 5


class ClusterStore(Store):
    """Counts in one cluster. Nothing is opened before the first call. `options` are those of RedisStore, per server.

    Each server has its own connections, breaker and time-outs: one that is away leaves the others' slots as they are.
    """

    def __init__(self, shard: Shard, **options: Unpack[Patience]) -> None:
        self.name = shard.name
        self.address = public_url(shard.url)
        self._target = target_of(shard)
        self._options = options
        self._lock = Lock()
        self._nodes: dict[str, RedisStore] = {}
        self.topology = Topology(self._candidates, self._ask_slots)

    # -- the contract ------------------------------------------------------------------------------------------------

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page at once and return its new count; waits up to `add_seconds`."""
        commands = [(partition_of(page), add_command(page, visits))]
        (count,) = self._answers(self._route(commands, lambda node, mine, asking: node.ask_add(mine, asking=asking)))
        return int(count)

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order; waits up to `read_seconds` for each reply."""
        stored: list[Stored] = []
        for first in range(0, len(pages), CHUNK_READS):
            commands = [(partition_of(page), read_command(writer, page)) for page in pages[first : first + CHUNK_READS]]
            replies = self._route(commands, lambda node, mine, asking: node.ask_read(mine, asking=asking))
            stored += [stored_of(self.name, reply) for reply in self._answers(replies)]
        return stored

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch; the servers are sent theirs side by side, and one that is away fails its own only."""
        items = [(batch.partition, batch) for batch in batches]

        def send(node: RedisStore, mine: list[Batch], asking: bool) -> list[Any]:
            return node.applier.send(writer, mine, asking=asking)

        replies = self._route(items, send)
        return [applied_of(self.name, batch, reply) for (_, batch), reply in zip(items, replies, strict=True)]

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition; waits up to `apply_seconds` for each reply."""
        commands = [(partition, watermark_command(writer, partition)) for partition in partitions]
        replies = self._route(commands, lambda node, mine, asking: node.ask_flush(mine, asking=asking))
        # A cluster moves its own slots: where there is no hash, there is no partition on its way either.
        replies = [NOT_A_PARTITION.encode() if is_elsewhere(reply) else reply for reply in replies]
        return [text_of(reply or b"") for reply in self._answers(replies)]

    def read_topology(self) -> str:
        """Return the topology kept here, or ""; waits up to `read_seconds`."""
        replies = self._route([(0, topology_command())], lambda node, mine, asking: node.ask_read(mine, asking=asking))
        return (self._answers(replies)[0] or b"").decode(errors="replace")

    def offer_topology(self, text: str) -> str:
        """Keep this topology unless a newer one is here; waits up to `apply_seconds`."""
        commands = [(0, pack(*offer(text)))]
        replies = self._route(commands, lambda node, mine, asking: node.ask_flush(mine, asking=asking))
        return bytes(self._answers(replies)[0]).decode(errors="replace")

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait until everything applied is on the disks of the servers that have it now, and of all their replicas."""
        if not self.topology.refresh(force=True):
            return False
        self._hand_over()
        answers = in_parallel([partial(node.persist, timeout_seconds) for node in self.nodes()])
        if False in answers:
            return False
        return None if None in answers else True

    def one_per_server(self, partitions: Sequence[int]) -> list[int]:
        """Return one of these partitions for each server of the cluster that has any."""
        return list({self.topology.owner(partition): partition for partition in partitions}.values())

    def ping(self) -> bool:
        """Tell whether every partition has a server and all of these answer."""
        self.topology.refresh(force=True)
        answers = in_parallel([node.ping for node in self.nodes()])
        return all(answers) and self.topology.covers_all()

    def owner(self, page: str) -> str:
        """Return the server that has the page: the pages of another one are not to wait for it."""
        return f"{self.name} {self.topology.owner(partition_of(page))}"

    def is_away(self, page: str) -> bool:
        """Tell whether the server of a page is known and known not to answer."""
        partition = partition_of(page)
        return bool(self.topology.owner(partition)) and not self._reachable(partition)

    def needs_probe(self) -> bool:
        """Tell whether a server that has partitions is known not to answer."""
        return any(node.needs_probe() for node in self.nodes())

    def probe(self) -> None:
        """Ask who has the partitions of the servers that are away, and those whether they are back."""
        self.topology.refresh()
        in_parallel([node.probe for node in self.nodes() if node.needs_probe()])

    def look(self, writer: str, partitions: Sequence[int]) -> list[Seen]:
        """Return what each server is like that has any of the partitions, and last what has no server."""
        self.topology.refresh(force=True)
        by_address: dict[str, list[int]] = {}
        for partition in partitions:
            by_address.setdefault(self.topology.owner(partition), []).append(partition)
        without = by_address.pop("", [])
        rows = in_parallel(
            [partial(self._node(address).look_at, writer, mine) for address, mine in sorted(by_address.items())]
        )
        if without:
            addresses = ",".join(join_host(*host) for host in self._target.hosts)
            why = "no server has these partitions"
            error = explain(self.name, self.topology.error).reason if self.topology.error else why
            rows.append(Seen(addresses, partitions=len(without), error=error))
        return rows

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            nodes = list(self._nodes.values())
        for node in nodes:
            node.close()

    # -- servers -----------------------------------------------------------------------------------------------------

    def nodes(self) -> list[RedisStore]:
        """Return the servers that have partitions, as far as known."""
        return [self._node(address) for address in self.topology.primaries()]

    def _node(self, address: str) -> RedisStore:
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                url = server_url(self._target, *split_host(address))
                node = self._nodes[address] = RedisStore(
                    # The name of the whole cluster, and the address, stand in its errors.
                    Shard(f"{self.name} ({address})", url),
                    known_replicas=partial(self.topology.replicas, address),
                    **self._options,
                )
            return node

    def _candidates(self) -> Iterator[str]:
        """Give the servers that may be asked about the cluster, those that answered last first."""
        with self._lock:
            known = list(self._nodes.items())
        yield from (address for address, node in known if node.breaker.state == "closed")
        yield from (join_host(*host) for host in self._target.hosts)
        yield from (address for address, _ in known)

    def _ask_slots(self, address: str, command: bytes) -> Any:
        (reply,) = self._node(address).ask_read([command])
        return reply

    def _hand_over(self) -> None:
        """Let each server vouch for the partitions it has now, whoever had them when they were applied to."""
        with self._lock:
            nodes = dict(self._nodes)
        for address, node in nodes.items():
            leaving = node.applier.hand_over(partial(self._is_elsewhere, address))
            for (writer, at), mark in leaving.items():
                self._node(self.topology.owner(at)).applier.take_over({(writer, at): mark})

    def _is_elsewhere(self, address: str, partition: int) -> bool:
        return self.topology.owner(partition) not in ("", address)

    # -- routing -----------------------------------------------------------------------------------------------------

    def _route(
        self, items: Sequence[tuple[int, T]], send: Callable[[RedisStore, list[T], bool], list[Any]]
    ) -> list[Any]:
        """Have each (partition, item) sent to its server, all of a server in one go; return what came for each.

        The flag of `send` tells the server to take what is on its way to it already.
        """
        if any(not self._reachable(at) for at, _ in items):
            # Who knows of a server goes on with that one while somebody else asks.
            self.topology.refresh(wait=any(not self.topology.owner(at) for at, _ in items))
        replies: list[Any] = [None] * len(items)
        left = {index: (self.topology.owner(at), False) for index, (at, _) in enumerate(items)}
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
                return [self.topology.error or unknown] * len(indexes)
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
        self.topology.learn(partition, address)
        return address, False

    def _reachable(self, partition: int) -> bool:
        """Tell whether the server of a partition is known and up; if not, the cluster may have promoted another."""
        address = self.topology.owner(partition)
        return bool(address) and self._node(address).breaker.state == "closed"

    def _answers(self, replies: list[Any]) -> list[Any]:
        """Return the replies if all are; raises StoreError for the first that is an error."""
        for reply in replies:
            if isinstance(reply, RedisError):
                raise explain(self.name, reply)
        return replies
