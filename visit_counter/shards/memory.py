"""MemoryStore: the in-memory twin of a shard, for the `basic` profile and for tests. It ends with the process."""

from __future__ import annotations

from collections import defaultdict
from threading import Lock
from typing import TYPE_CHECKING

from visit_counter.model.visits import Tally
from visit_counter.shards.contract import NO_WATERMARK, Applied, Batch, Look, Store, Stored
from visit_counter.shards.ring import partition_of
from visit_counter.shards.shard_map import version_of
from visit_counter.shards.stamps import next_stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class MemoryStore(Store):
    """Counts and watermarks in two dicts under one lock."""

    def __init__(self, name: str = "in_memory") -> None:
        self.name = name
        self._lock = Lock()
        self._counts = Tally()
        self._watermarks: dict[tuple[str, int], str] = {}
        self._losses: defaultdict[int, int] = defaultdict(int)
        self._stamps: dict[int, str] = {}
        self._shard_map = ""

    def add(self, page: str, visits: int) -> int:
        """Count visits of a page and return its new count."""
        with self._lock:
            self._counts.merge(Tally({page: visits}))
            return self._counts[page]

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        """Return what is stored for each page, in order."""
        with self._lock:
            return [
                Stored(self._counts.get(page, 0), *self._look(writer, at))
                for page, at in zip(pages, map(partition_of, pages), strict=True)
            ]

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        """Return what tells whether each partition has changed, in order."""
        with self._lock:
            return [self._look(writer, partition) for partition in partitions]

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        """Apply each batch whose `expected` is the partition's watermark now."""
        return [self._apply(writer, batch) for batch in batches]

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        """Return the writer's watermark token in each partition, in order."""
        with self._lock:
            return [self._watermark(writer, partition) for partition in partitions]

    def raise_losses(self, by: Mapping[int, int]) -> set[int]:
        """Raise the `losses` of each partition."""
        with self._lock:
            for partition, number in by.items():
                self._losses[partition] += number
        return set(by)

    def persist(self, timeout_seconds: float) -> bool | None:  # noqa: ARG002 - the contract's argument; there is nothing to wait for
        """Return None: there is no disk."""
        return None

    def read_shard_map(self) -> str:
        """Return the shard map kept here, or ""."""
        return self._shard_map

    def offer_shard_map(self, text: str) -> str:
        """Keep this shard map unless a newer one is here; return the one there is then."""
        with self._lock:
            if version_of(self._shard_map) < version_of(text):
                self._shard_map = text
            return self._shard_map

    def ping(self) -> bool:
        """Return True: it is in this process."""
        return True

    def close(self) -> None:
        """Do nothing: there are no connections, and the counts stay readable."""

    def _watermark(self, writer: str, partition: int) -> str:
        return self._watermarks.get((writer, partition), NO_WATERMARK)

    def _look(self, writer: str, partition: int) -> Look:
        return Look(self._watermark(writer, partition), self._losses[partition], self._stamps.get(partition, ""))

    def _apply(self, writer: str, batch: Batch) -> Applied:
        with self._lock:
            present = self._watermark(writer, batch.partition)
            if present != batch.expected:
                return Applied(batch.partition, present)
            self._counts.merge(batch.visits)
            self._watermarks[writer, batch.partition] = batch.watermark
            self._stamps[batch.partition] = next_stamp(self._stamps.get(batch.partition, ""), writer, batch.watermark)
            return Applied(batch.partition, batch.watermark)
