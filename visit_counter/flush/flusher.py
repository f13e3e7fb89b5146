"""The flush: from sealed segments to the partitions, exactly once.

    seal -> add up per partition -> compare watermarks -> apply -> wait for the shards' disks -> confirm -> forget

One process of a host flushes at a time (`flush.lock`). The journal's files decide what is flushed, not the memory of a
process, so the next flush carries on where a killed one stopped. A table in memory is used in place of a file only if
it surely has the same content. Every decision starts from the watermarks that the partitions have now; the watermarks
that this host has noted (`state.confirmed`) only show whether a shard has lost something.
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

# With less room than this on the disk, only segments that a shard may need are retained.
_ROOM_BYTES = 1 << 20
# How many segments are kept at most while a shard has not confirmed that they are on its disk. A shard that never
# confirms must not make the journal grow for ever.
_RETAIN_UNPERSISTED = 1000


class Flusher:
    """Flushes one journal into one sharded store. `retain_segments`: how many included segments stay on disk.

    If a shard comes back with older data, the flush sends it the retained segments again. More than `retain_segments`
    are kept until the shards have confirmed that everything is on their disks. `max_bytes` bounds the journal: above
    half of it, only the segments that a shard may need are retained. `followed(segment)` returns the content of a
    sealed segment if this process has it in memory, else None.
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
        """Send all visits accepted so far to the partitions that can be reached; return the outcome.

        `error` in the outcome names what failed; the visits that were not sent stay pending. Raises FlushBusyError if
        `wait` is false and another process is flushing, OSError if the journal cannot be written, and JournalError if
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
        """Return the included segments that may be deleted, since no shard may need them again; oldest first."""
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
