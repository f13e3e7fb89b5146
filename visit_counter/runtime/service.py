"""The service of one process: its parts, started after the fork and stopped with a last flush."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from visit_counter.counting.counter import BufferedCounter, VisitCounter
from visit_counter.counting.direct import DirectCounter
from visit_counter.embedded.shards import EmbeddedShards
from visit_counter.errors import FlushBusyError, JournalError, StoreError
from visit_counter.flush.flusher import Flusher
from visit_counter.flush.launcher import FlushProcess
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.checkpoint import Checkpoint, acknowledged
from visit_counter.journal.segments import Journal
from visit_counter.model.origins import Origins
from visit_counter.private_files import check_data_dir
from visit_counter.runtime.health import FlushWatch, Health, Journaled, flush_complaints
from visit_counter.runtime.scheduler import Job, Leader, make_scheduler
from visit_counter.shards.factory import make_store
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.router import ShardedStore
from visit_counter.statistics.guards import Guards

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

    from visit_counter.config.settings import Settings
    from visit_counter.counting.cache import LocalCache
    from visit_counter.journal.checkpoint import LastFlush
    from visit_counter.journal.witnesses import Witnesses

log = logging.getLogger(__name__)

# A flush of more pages than this is given a process of its own, and so is one that has to read more visits from files:
# it would slow down this process's visitors for longer than a tenth of a second.
_FLUSH_HERE_PAGES = 5000
_READ_HERE_VISITS = 50_000
# A flush process is killed after so many intervals between flushes, within these bounds in seconds.
_FLUSH_PROCESS_INTERVALS = 20
_FLUSH_PROCESS_SECONDS = (60.0, 600.0)


class Service:
    """All parts of one process. Nothing is opened before `open` or `start`; both may be called again."""

    def __init__(self, settings: Settings, cache: LocalCache) -> None:
        self.settings = settings
        self.origins = Origins(settings.origins)
        self.guards = Guards(settings)
        self.store: ShardedStore | None = None
        self.buffer: WriteBuffer | None = None
        self.flusher: Flusher | None = None
        self.counter: VisitCounter
        self._embedded = EmbeddedShards(settings)
        self._lock = threading.RLock()
        self._opened_by = 0  # process id: a forked child opens its own
        self.witnesses: Witnesses | None = None  # where a master has forked this process
        self._scheduler: BackgroundScheduler | None = None
        has = settings.has
        if not has.has_shards:
            self.counter = DirectCounter(MemoryStore("in_memory"), via=has.via or "", waits=False)
            return
        self.store = ShardedStore([make_store(shard) for shard in settings.shards], shared=has.shares_pages)
        if has.journal:
            self.counter = self._buffered(self.store, cache)
        else:
            self.counter = DirectCounter(self.store, via=has.via or "", cache=cache if has.cache else None)

    def _buffered(self, store: ShardedStore, cache: LocalCache) -> BufferedCounter:
        settings = self.settings
        journal = Journal(settings.data_dir / "journal")
        self.buffer = WriteBuffer(
            journal,
            fsync=settings.journal_fsync,
            max_bytes=settings.journal_max_bytes,
            max_pages=settings.pending_max_pages,
        )
        self.flusher = Flusher(
            journal,
            store,
            retain_segments=settings.retain_segments,
            max_bytes=settings.journal_max_bytes,
            followed=self.buffer.followed,
        )
        self._leader = Leader(journal.path / "leader.lock")
        least, most = _FLUSH_PROCESS_SECONDS
        limit = min(max(least, _FLUSH_PROCESS_INTERVALS * settings.flush_seconds), most)
        self._flush_process = FlushProcess(settings, limit)
        self._watch = FlushWatch(settings.flush_seconds)
        via, pending_via = settings.has.via, settings.has.pending_via
        return BufferedCounter(
            self.buffer,
            store,
            cache,
            post_via=(lambda _: pending_via) if pending_via else store.shard_name,
            stored_via=(lambda _: via) if via else store.shard_name,
            pending_via=pending_via,
        )

    # -- life --------------------------------------------------------------------------------------------------------

    def open(self, *, begin: bool = True) -> None:
        """Open the journal, once for each process. Raises StartupError, and JournalError.

        Where there is no journal one is made, but not without `begin`, and not if another process knows it.
        """
        with self._lock:
            if self._opened_by != os.getpid():
                if self.buffer is not None:
                    with self.witnesses.joining(self.buffer.journal) if self.witnesses else nullcontext(begin) as may:
                        self.buffer.open(begin=may)
                self._opened_by = os.getpid()

    def start(self) -> None:
        """Open, and start the background jobs. Raises StartupError."""
        self.open()
        with self._lock:
            if self.store is not None:
                self.store.report_outages()
            if self._scheduler is None and (jobs := self._jobs()):
                self._scheduler = make_scheduler(jobs)
                self._scheduler.start()

    def _jobs(self) -> list[Job]:
        jobs = []
        if self.buffer is not None:
            jobs += [
                Job("follow", self.follow, 1.0),
                Job("flush", self._flush_if_leader, self.settings.flush_seconds),
                Job("probe", self._probe, 0.5),
                Job("look", self._look, 1.0),
            ]
        if self.settings.embedded:
            jobs.append(Job("keep the embedded shards", self._embedded.keep, 1.0))
        return jobs

    def start_once(self) -> None:
        """Start in a process that no server hook has started: `flask run`, tests, other WSGI servers.

        Such a process has no master that runs the embedded shards, so they begin and end with it.
        """
        if self._opened_by == os.getpid():
            return
        with self._lock:
            if self._opened_by != os.getpid():
                if self.settings.has.has_shards:
                    for warning in check_data_dir(self.settings.data_dir):
                        log.warning("%s", warning)
                if self.settings.embedded:
                    self._embedded.start()
                    atexit.register(self._embedded.stop)
                atexit.register(self.stop)  # runs before: what is registered last is called first
                self.start()

    def stop(self) -> None:
        """End the background jobs, flush what is pending, and close everything."""
        if self._scheduler is not None:
            if self.buffer is not None:
                self._flush_process.hurry()
            self._scheduler.shutdown(wait=True)
            self._scheduler = None
        if self.buffer is not None and self._opened_by == os.getpid():
            self._last_flush()
            self._leader.release()
        self.close()

    def close(self) -> None:
        """Close files and connections; what is pending stays in the journal."""
        if self.buffer is not None and self._opened_by == os.getpid():
            self.buffer.close()
            if self.witnesses is not None:
                self.witnesses.leave()
        self._opened_by = 0
        if self.store is not None:
            self.store.close()

    # -- jobs --------------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Follow the journal; done once a second."""
        assert isinstance(self.counter, BufferedCounter)  # noqa: S101 - where there is a buffer, there is this counter
        self.counter.tick()
        self._watch.observe(self.counter.buffer.state)

    def _probe(self) -> None:
        """Ask the shards that are down whether they are back, so that no visitor waits to find out."""
        assert self.store is not None  # noqa: S101 - where there is a buffer, there are shards
        self.store.probe()

    def _look(self) -> None:
        """Look at the partitions whose pages are in use, so that no visitor has to read these again."""
        assert isinstance(self.counter, BufferedCounter)  # noqa: S101 - where there is a buffer, there is this counter
        self.counter.stored.look()

    def _refresh_shard_map(self) -> None:
        """Read the shard map again, so that after a rebalance no removed shard is asked for a partition."""
        assert self.store is not None  # noqa: S101 - where there is a buffer, there are shards
        try:
            self.store.refresh_shard_map()
        except StoreError as error:
            log.warning("%s", error)

    def _flush_if_leader(self) -> None:
        self._refresh_shard_map()
        if not self._leader.acquire() or self.buffer is None:
            return
        # A segment that was cut or removed is repaired before it is sent, not after.
        self.follow()
        if self.buffer.halted:
            return
        with self.buffer.lock:
            visits, pages = self.buffer.pending_totals()
            reads = visits > _READ_HERE_VISITS and not self.buffer.tables.are_whole
        try:
            if reads or pages > _FLUSH_HERE_PAGES:
                self._flush_process.run()
            else:
                self.flush(wait=False)
        except FlushBusyError:
            log.info("a flush is under way already")

    def flush(self, *, wait: bool = True) -> LastFlush | None:
        """Flush now, in this thread; return None if the profile has no journal. Raises FlushBusyError, OSError."""
        if self.flusher is None:
            return None
        result = self.flusher.flush(wait=wait)
        if result.error:
            log.warning("flushed %d visits of %d pages; still pending: %s", result.visits, result.pages, result.error)
        elif result.visits:
            log.info("flushed %d visits of %d pages in %.3f s", result.visits, result.pages, result.seconds)
        return result

    def _last_flush(self) -> None:
        try:
            self.follow()
            self.flush()
        except (FlushBusyError, JournalError, OSError) as error:
            log.error("the last flush failed, its visits stay pending: %s", error)

    # -- what /health says ------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Return what happened. Asks the shards, and waits 0.15 s at most for one that does not answer."""
        shards = self.store.ping_each() if self.store else {}
        why = self.store.reasons() if self.store else {}
        complaints = [
            f"{name} does not answer{f': {why[name]}' if name in why else ''}" for name, up in shards.items() if not up
        ]
        refusal, journaled = self._refusal(shards), None
        if self.buffer is not None:
            with self.buffer.lock:
                self.buffer.catch_up()
                pending, _ = self.buffer.pending_totals()
            # From the file: a flush with nothing to tell does not announce itself.
            state = Checkpoint.load(self.buffer.journal.state_path)
            age = max(0, round(time.time() - state.complete_at)) if state.complete_at else None
            signed = acknowledged(self.buffer.journal.path)
            journaled = Journaled(pending, age, [note for note in state.damage if note not in signed])
            complaints += flush_complaints(state, self._watch)
            if journaled.damage:
                number = len(journaled.damage)
                complaints.append(f"damage was found and is not acknowledged ({number} of `damage`)")
        return Health(self.settings.profile, shards, refusal, tuple(complaints), journaled)

    def refusal(self) -> str | None:
        """Return why a visit could not be accepted now, or None. Asks the shards only where there is no journal."""
        return self._refusal(self.store.ping_each() if self.store and self.buffer is None else {})

    def _refusal(self, shards: dict[str, bool]) -> str | None:
        if self.buffer is not None:
            with self.buffer.lock:
                return self.buffer.refusal()
        if not all(shards.values()):
            return "the store does not answer, and this profile has no journal"
        # A shard may answer and still refuse visits, for example because it is full.
        return self.counter.refusal() if isinstance(self.counter, DirectCounter) else None
