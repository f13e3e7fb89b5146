"""The servers of a cluster, and sending what is asked of a partition to the server that has its slot.

The engine is Redis Cluster: it keeps the slots, moves them, and promotes replicas. redis-py connects, authenticates and
parses; its RedisCluster is not used, because it sends a command again after a lost connection, which would count visits
twice, and when it meets a dead server it asks the whole cluster again within that request, dead servers included.

What is sent a second time here is what a server replied to with MOVED or ASK: "I did not do it, ask there".
"""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from redis.exceptions import AskError, ConnectionError, MovedError  # noqa: A004 - redis-py's name

from visit_counter.config.settings import Shard
from visit_counter.shards.cluster.slots import SlotMap, are_slots
from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.redis.pools import join_host, server_url, split_host, target_of
from visit_counter.shards.redis.replicas import Replicas
from visit_counter.shards.redis.server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from visit_counter.shards.redis.server import Timeouts
    from visit_counter.shards.redis.shapes import Shape

T = TypeVar("T")

# From the old owner to the new one, and once more where a slot moves on meanwhile.
_MAX_HOPS = 5


class ClusterServers:
    """The servers of one cluster. Nothing is opened before the first call. `timeouts` are those of each server.

    Each server has its own connections, breaker and time-outs, so one that is down does not affect the slots of others.
    """

    def __init__(self, shard: Shard, **timeouts: Unpack[Timeouts]) -> None:
        self._name = shard.name
        self._target = target_of(shard)
        self._timeouts = timeouts
        self._lock = Lock()
        self._opened: dict[str, RedisServer] = {}
        self._reports_outages = False
        self.replicas = Replicas()
        self.slots = SlotMap(self._candidates, self._ask_slots)

    @property
    def listed(self) -> str:
        """The addresses of the servers that the list names, for people."""
        return ",".join(join_host(*host) for host in self._target.hosts)

    def at(self, address: str) -> RedisServer:
        """Return the server at an address."""
        with self._lock:
            server = self._opened.get(address)
            if server is None:
                server = self._opened[address] = RedisServer(
                    # Its errors name the whole cluster and the address.
                    Shard(f"{self._name} ({address})", server_url(self._target, *split_host(address))),
                    listed_replicas=partial(self.slots.replicas, address),
                    replicas=self.replicas,
                    primary=address,
                    **self._timeouts,
                )
                if self._reports_outages:
                    server.report_outages()
            return server

    def with_partitions(self) -> list[RedisServer]:
        """Return the servers that have partitions, as far as known."""
        return [self.at(address) for address in self.slots.primaries()]

    def ever_used(self) -> dict[str, RedisServer]:
        """Return every server that was used so far, by its address, also those that have no partition now."""
        with self._lock:
            return dict(self._opened)

    def is_reachable(self, partition: int) -> bool:
        """Tell whether the server of a partition is known and up; if not, the cluster may have promoted another."""
        address = self.slots.owner(partition)
        return bool(address) and not self.at(address).is_down()

    def report_outages(self) -> None:
        """Log from now on when a server is down, and when it is back."""
        with self._lock:
            self._reports_outages = True
            for server in self._opened.values():
                server.report_outages()

    def close(self) -> None:
        """Close all connections."""
        for server in self.ever_used().values():
            server.close()

    # -- asking the servers of partitions ----------------------------------------------------------------------------

    def ask_each(self, commands: Sequence[tuple[int, bytes]], shapes: Iterable[Shape]) -> list[Any]:
        """Exchange the packed commands of partitions with the servers that have them, with a flush's time-out."""
        items = [(at, (command, shape)) for (at, command), shape in zip(commands, shapes, strict=False)]

        def send(server: RedisServer, mine: list[tuple[bytes, Shape]], asking: bool) -> list[Any]:
            return server.ask_with_shapes([command for command, _ in mine], [shape for _, shape in mine], asking=asking)

        return self.route(items, send)

    def ask_to_read(self, commands: Sequence[tuple[int, bytes]], shape: Shape) -> list[Any]:
        """Exchange the packed commands of partitions as a reader does."""
        return self.route(commands, lambda server, mine, asking: server.ask_read(mine, shape, asking=asking))

    def route(
        self, items: Sequence[tuple[int, T]], send: Callable[[RedisServer, list[T], bool], list[Any]]
    ) -> list[Any]:
        """Have each (partition, item) sent to its server, all of a server in one go; return what came for each.

        The flag of `send` tells the server to accept commands for partitions that are being moved to it.
        """
        if any(not self.is_reachable(at) for at, _ in items):
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
        send: Callable[[RedisServer, list[T], bool], list[Any]],
    ) -> Iterator[tuple[int, Any]]:
        """Send the items of these indexes to these (address, asking); give what came for each index."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for index, place in left.items():
            groups.setdefault(place, []).append(index)

        def call(address: str, indexes: list[int], asking: bool) -> list[Any]:
            if not address:
                unknown = ConnectionError("no server of the cluster is known to have this partition")
                return [self.slots.error or unknown] * len(indexes)
            return send(self.at(address), [items[index][1] for index in indexes], asking)

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

    # -- asking about the cluster ------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[str]:
        """Give the servers that may be asked about the cluster, those that answered last first."""
        known = self.ever_used()
        yield from (address for address, server in known.items() if not server.is_down())
        yield from (join_host(*host) for host in self._target.hosts)
        yield from known

    def _ask_slots(self, address: str, command: bytes) -> Any:
        (reply,) = self.at(address).ask_read([command], are_slots)
        return reply
