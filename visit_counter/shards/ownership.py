"""Which shard has a partition, as far as one process knows. No I/O.

It starts from the shard map (`shards.shard_map`), not from the configured list, and notes where shards say that a
partition has moved. What it knows may be old: then the shard that is asked says where the partition is now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from visit_counter.errors import StoreUnavailableError
from visit_counter.shards.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visit_counter.shards.contract import Store
    from visit_counter.shards.identity import Identity
    from visit_counter.shards.shard_map import ShardMap


class Ownership:
    """The owner of every partition: by the ring of the configured stores until a shard map is adopted."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.shard_map: ShardMap | None = None
        self.owners = list(Ring([store.name for store in stores]).owners)
        self._stores = {store.name: store for store in stores}
        self._renamed: dict[str, Store] = {}
        self._mistaken: dict[str, str] = {}

    @property
    def layout(self) -> str:
        """A short text that is the same as long as every partition has the same owner."""
        return f"{crc32(' '.join(self.owners).encode()):08x}"

    def adopt(self, shard_map: ShardMap) -> None:
        """Start from a shard map, and forget the moves that were noted under the former one."""
        self.shard_map = shard_map
        self.owners = list(Ring(sorted(shard_map.shards)).owners)
        self._find_renamed({})

    def recognise(self, said: Mapping[str, Identity], mistaken: Mapping[str, str]) -> None:
        """Note which shards the servers say they are, and why some of them are not those that the list has there."""
        self._mistaken = dict(mistaken)
        self._find_renamed(
            {identity.name: self._stores[name] for name, identity in said.items() if name not in mistaken}
        )

    def _find_renamed(self, by_name: Mapping[str, Store]) -> None:
        """Find servers with a new name in the list under the one they have in the shard map."""
        shard_map = self.shard_map
        if shard_map is None:
            return
        by_address = {store.address: store for store in self._stores.values()}
        self._renamed = {
            name: store
            for name, address in shard_map.everyone.items()
            if name not in self._stores and (store := by_name.get(name) or by_address.get(address)) is not None
        }

    def store(self, name: str) -> Store:
        """Return the store of a shard. Raises StoreUnavailableError for one that this host does not know."""
        store = self._stores.get(name) or self._renamed.get(name)
        if store is None:
            raise unknown_shard(name)
        if store.name in self._mistaken:
            raise StoreUnavailableError(name, self._mistaken[store.name])
        return store

    @property
    def renamed(self) -> Mapping[str, Store]:
        """The servers whose name in the list is new, by the one they have in the shard map."""
        return self._renamed

    def follow(self, partition: int, name: str) -> bool:
        """Note that a partition has moved; False if its new shard is not known here.

        Then nothing is noted: the former owner is asked again, for the partition may come back.
        """
        if name not in self._stores and name not in self._renamed:
            return False
        self.owners[partition] = name
        return True


def unknown_shard(name: str) -> StoreUnavailableError:
    """Return the error for a shard that has counts and that this host has no address of."""
    return StoreUnavailableError(name, "it has partitions of these counts, and is not in VISITS_SHARDS")
