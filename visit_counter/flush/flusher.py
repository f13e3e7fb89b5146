"""The flush: from sealed segments to the partitions, exactly once.

    seal -> add up per partition -> compare watermarks -> apply -> wait for the shards' disks -> confirm -> forget

One process of a host flushes at a time (`flush.lock`). The journal's files decide what is flushed, not any process's
memory, so whoever comes next carries on where a killed one stopped. A table in memory is used only where it surely says
what the file says. Every decision starts from the watermarks that the partitions
have now; what this host remembers of them (`state.confirmed`) only tells whether a shard lost something.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.errors import FlushBusyError
from visit_counter.flush.compaction import compact_waiting
from visit_counter.flush.round import Round
from visit_counter.journal.checkpoint import Checkpoint, LastFlush
from visit_counter.journal.records import FLUSHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.flush.sealed import Followed
    from visit_counter.journal.segments import Journal, Segment
    from visit_counter.shards.router import ShardedStore


log = logging.getLogger(__name__)

# With less room on the disk nothing is retained beyond what a shard may need.
_ROOM_BYTES = 1 << 20
# Segments that are not known to be on a shard's disk are kept up to this number: a shard that never confirms must not
# make the journal grow for ever.
_RETAIN_UNPERSISTED = 1000


class Flusher:
    """Flushes one journal into one sharded store. `retain_segments`: how many included segments stay on disk.

    Retained segments make a shard whole that comes back with older data; they are kept beyond that number until the
    shards have said that everything is on their disks. `max_bytes` bounds the journal: near it, fewer are retained.
    `followed(segment)` returns what a sealed segment holds if a process knows that without reading the file, else None.
    """

    def __init__(
        self,
        journal: Journal,
        store: ShardedStore,
        *,
        retain_segments: int = 20,
        max_bytes: int = 1 << 30,
        followed: Followed = lambda _: None,
    ) -> None:
        self.journal, self.store = journal, store
        self._followed = followed
        self._retain = retain_segments
        self._max_bytes = max_bytes

    def flush(self, *, wait: bool = True) -> LastFlush:
        """Bring everything accepted so far into the partitions that can be reached; return how it went.

        `error` in the result names what could not be reached; those visits stay pending. Raises FlushBusyError when
        `wait` is false and another process is flushing, OSError when the journal cannot be written, JournalError when
        its files are gone.
        """
        with self._only_one(wait=wait):
            started = time.monotonic()
            self.journal.remove_leftovers()
            state = Checkpoint.load(self.journal.state_path)
            self.journal.remove_covered()
            round_ = Round(self.journal, self.store, state, self._followed)
            error = round_.run()
            result = LastFlush(time.time(), round(time.monotonic() - started, 3), round_.visits, round_.pages, error)
            state.last_flush = result
            if not error:
                state.complete_at = result.at
            state.down = {shard: state.down.get(shard, result.at) for shard in round_.findings.trouble}
            state.trouble = round_.findings.trouble
            forgettable = self._forgettable(state)
            for segment in forgettable:
                round_.note_forgotten(segment, round_.sealed.content_of(segment))
            state.save(self.journal.state_path)
            steps.step("confirm")
            if round_.findings.changed:
                round_.announce(FLUSHED, str(state.floor))
            for segment in forgettable:
                steps.step("forget")
                self.journal.forget(segment)
            if error:
                compact_waiting(round_, keep=self._retain)
            return result

    @contextmanager
    def _only_one(self, *, wait: bool) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self.journal.flush_lock(wait=wait))
            except BlockingIOError:
                raise FlushBusyError from None
            yield

    def _forgettable(self, state: Checkpoint) -> list[Segment]:
        """Return the included segments that no shard may need again, oldest first."""
        included = [segment for segment in self.journal.segments() if segment.last <= state.floor]
        on_disk = min((reached for _, reached in state.unpersisted.values()), default=state.floor)
        scarce = self.journal.size_bytes() > self._max_bytes // 2 or self.journal.room_bytes() < _ROOM_BYTES
        retain = 0 if scarce else self._retain
        forgettable = [
            segment
            for newer, segment in zip(range(len(included) - 1, -1, -1), included, strict=True)
            if newer >= _RETAIN_UNPERSISTED or (newer >= retain and segment.last <= on_disk)
        ]
        if any(segment.last > on_disk for segment in forgettable):
            shards = sorted({self.store.shard_of(partition) for partition in state.unpersisted})
            self._tell(
                state,
                f"{', '.join(shards)}: not on all disks for {_RETAIN_UNPERSISTED} flushes; older ones are "
                "forgotten now, and would be lost if a replica that lacks them were promoted",
            )
        return forgettable

    @staticmethod
    def _tell(state: Checkpoint, damage: str) -> None:
        if state.note_damage(damage):
            log.error("%s", damage)
