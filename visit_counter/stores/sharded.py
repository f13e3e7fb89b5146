"""ShardedStore: several stores as one; the ring says which of them owns a page."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from visit_counter.errors import StoreError
from visit_counter.ring import Ring, partition_of
from visit_counter.stores.base import Applied, Batch, Store, Stored
from visit_counter.stores.parallel import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")
R = TypeVar("R")


class ShardedStore(Store):
    """Routes each page and partition to its shard. Calls to several shards run side by side, a thread for each."""

    name = "sharded"

    def __init__(self, stores: Sequence[Store]) -> None:
        self.ring = Ring([store.name for store in stores])
        self.stores: Mapping[str, Store] = MappingProxyType({store.name: store for store in stores})

    def shard_name(self, page: str) -> str:
        """Return the name of the shard that owns a page."""
        return self.ring.shard_of(partition_of(page))

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page on its shard."""
        return self.stores[self.shard_name(page)].add(page, visits)

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Read each page from its shard; raises the first shard's error once all have answered."""
        if len(pages) == 1:  # nearly every call: no threads, no grouping
            return self.stores[self.shard_name(pages[0])].read(writer, pages)
        return self._spread(pages, self.shard_name, lambda store, mine: store.read(writer, mine))

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch to its shard; a shard that is away fails its own batches only."""
        return self._spread(
            list(batches),
            lambda batch: self.ring.shard_of(batch.partition),
            lambda store, mine: store.apply(writer, mine),
        )

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the watermark of each partition from its shard; raises the first shard's error."""
        return self._spread(partitions, self.ring.shard_of, lambda store, mine: store.watermarks(writer, mine))

    def watermarks_of_reachable(
        self, writer: str, partitions: Sequence[int]
    ) -> tuple[dict[int, str], list[StoreError]]:
        """Return the watermark of each partition whose shard answers, and the errors of the shards that do not."""

        def ask(store: Store, mine: Sequence[int]) -> dict[int, str] | StoreError:
            try:
                return dict(zip(mine, store.watermarks(writer, mine), strict=True))
            except StoreError as error:
                return error

        found: dict[int, str] = {}
        errors: list[StoreError] = []
        for answer in in_parallel([partial(ask, store, mine) for store, mine in self.by_store(partitions)]):
            if isinstance(answer, StoreError):
                errors.append(answer)
            else:
                found |= answer
        return found, errors

    def persist(self, timeout_seconds: float) -> bool | None:
        """Wait for all shards at once: False if any is late, else None if any cannot tell, else True."""
        answers = self.persist_each(timeout_seconds).values()
        if False in answers:
            return False
        return None if None in answers else True

    def persist_each(self, timeout_seconds: float) -> dict[str, bool | None]:
        """Wait for all shards at once; return what each of them answers."""
        answers = in_parallel([partial(store.persist, timeout_seconds) for store in self.stores.values()])
        return dict(zip(self.stores, answers, strict=True))

    def ping(self) -> bool:
        """Tell whether all shards answer; ask `stores` for each."""
        return all(self.ping_each().values())

    def ping_each(self) -> dict[str, bool]:
        """Tell for each shard, by name, whether it answers."""
        return dict(zip(self.stores, in_parallel([store.ping for store in self.stores.values()]), strict=True))

    def owner(self, page: str) -> str:
        """Return the shard that owns a page, and which of its servers."""
        return self.stores[self.shard_name(page)].owner(page)

    def is_away(self, page: str) -> bool:
        """Tell whether the shard of a page is known not to answer now."""
        return self.stores[self.shard_name(page)].is_away(page)

    def needs_probe(self) -> bool:
        """Tell whether any shard is known not to answer now."""
        return any(store.needs_probe() for store in self.stores.values())

    def probe(self) -> None:
        """Ask the shards that are away, all at once, whether they are back."""
        in_parallel([store.probe for store in self.stores.values() if store.needs_probe()])

    def close(self) -> None:
        """Release the connections of all shards."""
        for store in self.stores.values():
            store.close()

    def by_store(self, partitions: Iterable[int]) -> Iterator[tuple[Store, list[int]]]:
        """Give each store that owns any of the partitions, and those it owns."""
        owned: dict[str, list[int]] = {}
        for partition in partitions:
            owned.setdefault(self.ring.shard_of(partition), []).append(partition)
        for name, mine in owned.items():
            yield self.stores[name], mine

    def _spread(
        self, items: Sequence[T], owner: Callable[[T], str], call: Callable[[Store, Sequence[T]], Sequence[R]]
    ) -> list[R]:
        """Call each owner with its items, and put the results into the order of the items."""
        places: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(owner(item), []).append(place)
        answers = in_parallel(
            [partial(call, self.stores[name], [items[place] for place in mine]) for name, mine in places.items()]
        )
        results: dict[int, R] = {}
        for mine, answer in zip(places.values(), answers, strict=True):
            results.update(zip(mine, answer, strict=True))
        return [results[place] for place in range(len(items))]
