"""A host in one process: a journal, its write buffers ("processes"), a flusher and shards in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.clock import Clock
from visit_counter.counting.cache import LocalCache
from visit_counter.counting.counter import BufferedCounter
from visit_counter.flush.flusher import Flusher
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.ring import PARTITIONS
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from pathlib import Path

    from visit_counter.shards.contract import Store

NAMES = ("redis_7070", "redis_7071")


class Host:
    """One data directory and what works on it."""

    def __init__(self, path: Path, stores: list[Store] | None = None, **flusher: Any) -> None:
        self.journal = Journal(path / "journal")
        self.store = ShardedStore(stores or [MemoryStore(name) for name in NAMES])
        self.flusher = Flusher(self.journal, self.store, **flusher)
        self.clock = Clock()
        self.counters: list[BufferedCounter] = []

    def process(self, **options: object) -> BufferedCounter:
        """Start another process: a counter with a buffer and a cache of its own."""
        buffer = WriteBuffer(self.journal, **options)  # type: ignore[arg-type]  # passed on as they are
        counter = BufferedCounter(
            buffer,
            self.store,
            LocalCache(threshold=10_000, ttl_seconds=5.0, clock=self.clock),
            post_via=self.store.shard_name,
            stored_via=self.store.shard_name,
        )
        buffer.open()
        self.counters.append(counter)
        return counter

    def tick(self) -> None:
        """Let every process do what it does once a second."""
        for counter in self.counters:
            counter.tick()

    def stored(self, page: str) -> int:
        """Return what the shards hold of a page."""
        [stored] = self.store.read(self.journal.writer, [page])
        return stored.visits

    def watermarks(self) -> list[str]:
        """Return the watermarks that partitions have."""
        return [found for found in self.store.watermarks(self.journal.writer, range(PARTITIONS)) if found]

    def flusher_damage(self) -> list[str]:
        """Return what the flush holds for damage."""
        return list(Checkpoint.load(self.journal.state_path).damage)

    def close(self) -> None:
        """Close the buffers' files."""
        for counter in self.counters:
            counter.buffer.close()
