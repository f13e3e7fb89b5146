"""Which server of a Redis Cluster has a partition: asked from the cluster, corrected by what its servers reply."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import RedisError

from visit_counter.shards.redis.commands import partition_key
from visit_counter.shards.redis.exchange import pack
from visit_counter.shards.redis.pools import join_host
from visit_counter.shards.redis.shapes import is_number, is_text_or_nothing
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SLOTS_COMMAND = pack(b"CLUSTER", b"SLOTS")
_SLOTS = 16384
# Of each partition, by CRC-16 of what stands between the braces of its key.
SLOT_OF = tuple(key_slot(partition_key(partition)) for partition in range(PARTITIONS))

# A cluster that changes is asked this often at most, so that a failover does not make every request ask.
REFRESH_SECONDS = 0.25
# With the cluster black-holed, one request pays for this long, not for a time-out per server.
_ASKING_SECONDS = 0.5


class SlotOwners(NamedTuple):
    """One reply to CLUSTER SLOTS: the address of each partition's primary ("" for none), and replicas by primary."""

    owners: tuple[str, ...]
    replicas: dict[str, int]


class SlotMap:
    """What is known of a cluster. `ask(address, command)` returns the reply of one of its servers or a RedisError.

    `candidates` gives the addresses to ask, the likeliest to answer first. Safe to use from several threads.
    """

    def __init__(
        self,
        candidates: Callable[[], Iterable[str]],
        ask: Callable[[str, bytes], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._candidates, self._ask, self._clock = candidates, ask, clock
        self._lock = Lock()
        self._owners = SlotOwners(("",) * PARTITIONS, {})
        # What servers have said with MOVED since.
        self._moved: dict[int, str] = {}
        self._asked_at = -REFRESH_SECONDS
        # Why the cluster could not be asked the last time.
        self.error: RedisError | None = None

    def owner(self, partition: int) -> str:
        """Return the address of the server that has a partition, as far as known; "" if unknown."""
        return self._moved.get(partition) or self._owners.owners[partition]

    def covers_all(self) -> bool:
        """Tell whether every partition has a server."""
        return all(map(self.owner, range(PARTITIONS)))

    def primaries(self) -> list[str]:
        """Return the addresses of all servers that have partitions."""
        return sorted({self.owner(partition) for partition in range(PARTITIONS)} - {""})

    def replicas(self, address: str) -> int:
        """Return how many replicas of a primary the cluster does not hold for failed."""
        return self._owners.replicas.get(address, 0)

    def note_moved(self, partition: int, address: str) -> None:
        """Take over what a server said with MOVED."""
        self._moved[partition] = address

    def refresh(self, *, wait: bool = False, force: bool = False) -> bool:
        """Ask the cluster; tell whether it replied.

        It is not asked if it was just now, unless by `force`. While somebody else asks, the answer is no, unless the
        caller will `wait`.
        """
        if not self._lock.acquire(blocking=wait or force):
            return False
        try:
            if not force and self._clock() - self._asked_at < REFRESH_SECONDS:
                return False
            self._asked_at = self._clock()
            for address in dict.fromkeys(self._candidates()):
                reply = self._ask(address, SLOTS_COMMAND)
                if not isinstance(reply, RedisError) and reply:
                    self._owners, self._moved, self.error = slot_owners_of(reply, address), {}, None
                    return True
                if isinstance(reply, RedisError):
                    self.error = reply
                if self._clock() - self._asked_at > _ASKING_SECONDS:
                    break
            return False
        finally:
            self._lock.release()


def are_slots(reply: Any) -> bool:
    """Tell whether a reply can be one to CLUSTER SLOTS."""
    return type(reply) is list and all(map(_is_range, reply))


def _is_range(row: Any) -> bool:
    if type(row) is not list or len(row) < 3 or not all(map(is_number, row[:2])):
        return False
    return 0 <= row[0] <= row[1] < _SLOTS and all(map(_is_server, row[2:]))


def _is_server(said: Any) -> bool:
    if type(said) is not list or len(said) < 2:
        return False
    return is_text_or_nothing(said[0]) and is_number(said[1]) and 0 <= said[1] <= 65535


def slot_owners_of(reply: Any, asked: str) -> SlotOwners:
    """Make sense of a reply to CLUSTER SLOTS: ranges of slots, each with its primary and its replicas.

    A server that does not know its own address says nothing for the host: it is the one that was asked.
    """
    host_asked = asked.rpartition(":")[0].strip("[]")
    by_slot: dict[int, str] = {}
    replicas: dict[str, int] = {}
    for first, last, primary, *others in reply:
        address = join_host((primary[0] or b"").decode(errors="replace") or host_asked, int(primary[1]))
        replicas[address] = len(others)
        by_slot.update(dict.fromkeys(range(first, last + 1), address))
    return SlotOwners(tuple(by_slot.get(slot, "") for slot in SLOT_OF), replicas)
