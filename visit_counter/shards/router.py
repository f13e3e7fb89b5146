"""ShardedStore: several stores as one; the shard map says which of them has a page.

With `shared`, which several shards always are in service, nothing is read or written before the shard map that the
shards keep is known, and partitions that have moved are followed. What a shard is named in an answer (`served_via`)
is the one that has the page now, as far as this process knows.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from visit_counter.errors import (
    PartitionMovedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from visit_counter.shards.agreement import Agreement
from visit_counter.shards.contract import NO_WATERMARK, Applied, Batch, Look, Store, Stored
from visit_counter.shards.ownership import Ownership, unknown_shard
from visit_counter.shards.parallel import group_by, in_parallel, spread
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from visit_counter.shards.redis.replicas import Replica
    from visit_counter.shards.shard_map import ShardMap

T = TypeVar("T")

# How often a moved partition is followed in one call. If it has moved on even then, the next call finds it.
_HOPS = 4


class ShardedStore(Store):
    """Routes each page and partition to its shard. Calls to several shards run side by side, a thread for each."""

    name = "sharded"

    def __init__(
        self, stores: Sequence[Store], *, shared: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stores: Mapping[str, Store] = MappingProxyType({store.name: store for store in stores})
        self._ownership = Ownership(stores)
        self._agreement = Agreement(self.stores, self._ownership, name=self.name, shared=shared, clock=clock)

    # -- who has what ------------------------------------------------------------------------------------------------

    def shard_name(self, page: str) -> str:
        """Return the name of the shard that has a page."""
        return self._ownership.owners[partition_of(page)]

    def shard_of(self, partition: int) -> str:
        """Return the name of the shard that has a partition."""
        return self._ownership.owners[partition]

    @property
    def layout(self) -> str:
        """A short text that is the same as long as every partition has the same shard."""
        return self._ownership.layout

    @property
    def shard_map(self) -> ShardMap | None:
        """The shard map this process works by; None before the first call, and where there is none."""
        return self._ownership.shard_map

    @property
    def mistaken(self) -> Mapping[str, str]:
        """By name, why servers in the list are not these shards; nothing is read or written there."""
        return self._agreement.mistaken

    def refresh_shard_map(self) -> None:
        """Read the shard map from the shards, and keep the known one if theirs is not newer. Raises StoreError."""
        self._agreement.refresh_shard_map()

    def load_shard_map(self) -> None:
        """Make sure that a shard map is known. Raises StoreError if none is; then nothing may be read or written."""
        self._agreement.load_shard_map()

    def _follow(self, error: PartitionMovedError) -> None:
        """Note where partitions have moved. Raises StoreUnavailableError for a shard that is not known here."""
        for partition, name in error.moved.items():
            if not self._ownership.follow(partition, name):
                self._ownership.store(name)

    def _following(self, call: Callable[[], T]) -> T:
        """Make a call, again for partitions that have moved; its errors may be due to an old shard map."""
        self.load_shard_map()
        try:
            for _ in range(_HOPS):
                try:
                    return call()
                except PartitionMovedError as error:
                    self._follow(error)
            raise StoreUnavailableError(self.name, "a partition is being moved")
        except StoreError:
            self._agreement.refresh_after_error()
            raise

    # -- the contract ------------------------------------------------------------------------------------------------

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page on its shard."""
        return self._following(lambda: self._store(partition_of(page)).add(page, visits))

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Read each page from its shard; raises the first shard's error once all have answered."""
        if len(pages) == 1:  # nearly every call: no threads, no grouping
            return self._following(lambda: self._store(partition_of(pages[0])).read(writer, pages))
        return self._following(
            lambda: spread(pages, self.shard_name, lambda name, mine: self._ownership.store(name).read(writer, mine))
        )

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        """Return what tells whether each partition has changed; None for those of a shard that does not answer."""
        try:
            self.load_shard_map()
        except StoreError:
            return [None] * len(partitions)
        return spread(partitions, self.shard_of, partial(self._look, writer))

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch to its shard; a shard that is down fails its own batches only."""
        batches = list(batches)
        try:
            self.load_shard_map()
        except StoreError as error:
            return _all_failed(batches, error)
        results: dict[int, Applied] = {}
        waiting = list(range(len(batches)))
        for _ in range(_HOPS):
            answers = spread(
                [batches[index] for index in waiting],
                lambda batch: self.shard_of(batch.partition),
                partial(self._apply, writer),
            )
            results.update(zip(waiting, answers, strict=True))
            waiting = [
                index
                for index in waiting
                if (to := results[index].moved_to) and self._ownership.follow(batches[index].partition, to)
            ]
            if not waiting:
                break
        return [results[index] for index in range(len(batches))]

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the watermark of each partition from its shard; raises the first shard's error."""
        return self._following(
            lambda: spread(
                partitions, self.shard_of, lambda name, mine: self._ownership.store(name).watermarks(writer, mine)
            )
        )

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition at its shard; one that moves meanwhile is not done."""
        return {
            partition
            for name, mine in self.partitions_by_store(by).items()
            for partition in self.stores[name].raise_losses({partition: by[partition] for partition in mine})
        }

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
        """Tell for each shard, by name, whether it answers and is who it is taken for."""
        answers = dict(zip(self.stores, in_parallel([store.ping for store in self.stores.values()]), strict=True))
        return {name: answer and name not in self.mistaken for name, answer in answers.items()}

    def reasons(self) -> dict[str, str]:
        """Return, without asking, why shards or parts of them are taken to be down, by name."""
        reasons = {name: self.mistaken.get(name) or store.reason() for name, store in self.stores.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def report_outages(self) -> None:
        """Log from now on when a shard is down and when it is back, once each."""
        for store in self.stores.values():
            store.report_outages()

    def owner(self, page: str) -> str:
        """Return the shard that has a page, and which of its servers."""
        try:
            return self._store(partition_of(page)).owner(page)
        except StoreError:
            return self.shard_name(page)

    def is_down(self, page: str) -> bool:
        """Tell whether the shard of a page is known not to answer now, or not known at all."""
        try:
            return self._store(partition_of(page)).is_down(page)
        except StoreError:
            return True

    def needs_probe(self) -> bool:
        """Tell whether any shard is known not to answer now."""
        return any(store.needs_probe() for store in self.stores.values())

    def probe(self) -> None:
        """Ask the shards that are down, all at once, whether they are back."""
        in_parallel([store.probe for store in self.stores.values() if store.needs_probe()])

    def close(self) -> None:
        """Release the connections of all shards."""
        for store in self.stores.values():
            store.close()

    # -- for the flush -----------------------------------------------------------------------------------------------

    def watermarks_of_reachable(
        self, writer: str, partitions: Sequence[int]
    ) -> tuple[dict[int, str], list[StoreError]]:
        """Return the watermark of each partition that can be reached, and why others cannot; never raises."""
        try:
            self.load_shard_map()
        except StoreError as error:
            return {}, [error]
        found: dict[int, str] = {}
        errors: list[StoreError] = []
        waiting = list(partitions)
        for _ in range(_HOPS):
            groups = group_by(waiting, self.shard_of)
            calls = [partial(self._try_watermarks, writer, name, mine) for name, mine in groups.items()]
            waiting = []
            for mine, answer in zip(groups.values(), in_parallel(calls), strict=True):
                if isinstance(answer, PartitionMovedError):
                    lost = {at: to for at, to in answer.moved.items() if not self._ownership.follow(at, to)}
                    waiting += [at for at in mine if at not in lost]
                    errors += [unknown_shard(name) for name in set(lost.values())]
                elif isinstance(answer, StoreError):
                    errors.append(answer)
                else:
                    for at, mark in zip(mine, answer, strict=True):
                        if isinstance(mark, StoreError):
                            errors.append(mark)
                        else:
                            found[at] = mark
        if waiting:
            errors.append(StoreUnavailableError(self.name, "a partition is being moved"))
        return found, errors

    def _try_watermarks(self, writer: str, name: str, partitions: Sequence[int]) -> list[str | StoreError] | StoreError:
        try:
            return self._ownership.store(name).watermarks_each(writer, partitions)
        except StoreError as error:
            return error

    def partitions_by_store(self, partitions: Iterable[int]) -> dict[str, list[int]]:
        """Return which of the partitions each store has, by its name in the list; none of those of unknown shards."""
        found: dict[str, list[int]] = {}
        for name, mine in group_by(partitions, self.shard_of).items():
            with suppress(StoreError):
                found.setdefault(self._ownership.store(name).name, []).extend(mine)
        return found

    def one_per_server_of(self, name: str, partitions: Sequence[int]) -> list[int]:
        """Return one of these partitions of a store for each of its servers: see `Store.one_per_server`."""
        return self.stores[name].one_per_server(partitions)

    def watermarks_at(self, name: str, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the watermark that each partition has at this store, and nowhere else. Raises StoreError."""
        return self.stores[name].watermarks(writer, partitions)

    def remember_replicas_of(self, by_store: Mapping[str, Mapping[str, Replica]]) -> None:
        """Tell each store, by its name in the list, which replicas it has had: see `Store.remember_replicas`."""
        for name, store in self.stores.items():
            store.remember_replicas(by_store.get(name, {}))

    def replicas_by_store(self) -> dict[str, dict[str, Replica]]:
        """Return the replicas that each store has or has had, by its name in the list; no stores without any."""
        known = {name: store.known_replicas() for name, store in self.stores.items()}
        return {name: replicas for name, replicas in known.items() if replicas}

    def _store(self, partition: int) -> Store:
        return self._ownership.store(self.shard_of(partition))

    def _look(self, writer: str, name: str, partitions: Sequence[int]) -> list[Look | None]:
        try:
            return self._ownership.store(name).look(writer, partitions)
        except StoreError:
            return [None] * len(partitions)

    def _apply(self, writer: str, name: str, batches: Sequence[Batch]) -> list[Applied]:
        try:
            return self._ownership.store(name).apply(writer, batches)
        except StoreError as error:
            return _all_failed(batches, error)


def _all_failed(batches: Sequence[Batch], error: StoreError) -> list[Applied]:
    refused = isinstance(error, StoreRefusedError)
    return [Applied(batch.partition, NO_WATERMARK, str(error), refused=refused) for batch in batches]
