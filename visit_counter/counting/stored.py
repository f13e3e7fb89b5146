"""The stored counts that this host knows: read from the shards, cached, and reported to all processes of the host.

When a process reads a count that is higher than the host knew, it reports the count in the journal before any answer
relies on it. Every process reads the journal to its end before it answers, so no reader sees a count go down, whichever
process answers. A lower count is not believed: the shard came back with older data, or a replica took its place, and a
flush will send again what the shard lacks. If visits are lost for good, the flush raises a number in the partition,
`losses`; a lower count that comes with a higher `losses` is believed.

A count stays fresh, without another read, for as long as no other writer changes its partition (`counting.freshness`).

One rule keeps a count right while segments move from pending to stored: the journal, the cached entries and the tables
of pending visits are read together, under the buffer's lock. A shard is read without the lock; the result is used only
if nothing that it depends on has changed in the meantime, else the shard is read once more.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.counting.freshness import NO_NUMBER
from visit_counter.counting.judging import Judge
from visit_counter.counting.kept import LAST_KNOWN_SECONDS, NOT_FRESH, KeptCounts
from visit_counter.counting.single_flight import SingleFlight
from visit_counter.counting.telling import Telling
from visit_counter.errors import StoreError, StoreRefusedError
from visit_counter.journal.records import Known
from visit_counter.shards.contract import NO_WATERMARK, Look, Stored, segment_of
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visit_counter.counting.cache import LocalCache
    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.journal.segments import Segment
    from visit_counter.shards.contract import Store

log = logging.getLogger(__name__)

# How often a read is tried. It is repeated if a flush was confirmed meanwhile; each repetition needs another flush.
_READ_TRIES = 5
# A partition is looked at when its counts will be fresh for less than this share of the cache time.
_SOON = 0.5
# How many partitions one call looks at: it holds the interpreter for some hundred microseconds.
_LOOK_PARTITIONS = 128

_UNTOLD = "what was read cannot be told to the other workers: the journal takes no more now"

Version = tuple[int, int, int]
# For each page of a read: the count that other processes reported while the read was under way, or None.
Heard = dict[str, Known | None]


class Read(NamedTuple):
    """The count that a read has found. It holds for as long as the page's version is this one."""

    known: Known
    version: Version


class Loaded(NamedTuple):
    """The result of loading pages for some asks: for each page its count, or the error."""

    read: dict[str, Read]
    errors: dict[str, StoreError]


class StoredCounts:
    """The stored counts that this process knows.

    Methods expect the buffer's lock to be held unless they say otherwise.
    """

    def __init__(self, buffer: WriteBuffer, store: Store, cache: LocalCache) -> None:
        self.buffer, self.store = buffer, store
        self._reads: SingleFlight[Read | StoreError] = SingleFlight()
        self._losses = 0  # `losses` of the state when `notice_losses` last read it
        # For each read that is under way, what others report of its pages: a small cache may drop such a count.
        self._listening: list[Heard] = []
        self._told: Counter[int] = Counter()  # by partition: how often a count of one of its pages was reported
        self._judge = Judge(buffer, store)
        self.kept = KeptCounts(cache, store)
        self._telling = Telling(buffer, self._known_of)
        buffer.on_load = self._forget_all
        buffer.on_read = self._hear
        buffer.known_of = self._known_of

    def loaded(self, page: str, loaded: Loaded) -> Known | None:
        """Return the count of a page that `load` has just read, or None if it could not be read."""
        known = self.kept.peek(page)
        if known is None and page in loaded.read:
            # The cache was too small for the page. The count that was read holds if the page's version is the same:
            # no visits have left the tables, and no process has reported another count.
            read = loaded.read[page]
            known = read.known if read.version == self._version(page) else None
        return known

    def load(self, pages: Iterable[str], loaded: Loaded) -> None:
        """Read the pages that are not known, with one call for each shard. Takes the lock itself, may wait.

        If a shard cannot be read, the last known counts are used for a moment more; without that each next visitor of
        the page would wait for the shard in turn.
        """
        by_owner: dict[str, dict[str, None]] = {}
        for page in pages:
            by_owner.setdefault(self.store.owner(page), {})[page] = None
        for group in by_owner.values():
            for page, flight in self._reads.do_all(group, self._read).items():
                found = flight.exception() or flight.result()
                if isinstance(found, Read):
                    loaded.read[page] = found
                elif isinstance(found, StoreError):
                    log.debug("the stored part of %s is not known: %s", page, found)
                    loaded.errors[page] = found
                    with self.buffer.lock:
                        self.kept.keep_last_known(page)
                else:
                    raise found

    def rebase(self, page: str, visits: int, last: int) -> None:
        """Add the visits of a table that is about to be dropped to the cached count of their page."""
        known = self.kept.peek(page)
        if known is not None and known.segment < last:
            self.kept.amend(page, Known(known.losses, last, known.stored + visits))
        for heard in self._listening:
            told = heard.get(page)
            if told is not None and told.segment < last:
                heard[page] = Known(told.losses, last, told.stored + visits)

    def notice_losses(self) -> None:
        """Let every cached count expire once a flush of this host has found that a shard has lost visits for good.

        Takes the lock itself.
        """
        with self.buffer.lock:
            if self._losses != self.buffer.state.losses:
                self._losses = self.buffer.state.losses
                self.kept.expire()

    def look(self) -> None:
        """Look at the partitions whose pages are in use, so that these pages need not be read again one by one.

        Takes the lock itself, but not while it asks the shards, some partitions at a time.
        """
        with self.buffer.lock:
            due = self.kept.freshness.due(self.kept.cache.ttl_seconds * _SOON)
        for first in range(0, len(due), _LOOK_PARTITIONS):
            partitions = due[first : first + _LOOK_PARTITIONS]
            writer, asked_at = self.buffer.writer, self.kept.cache.clock()
            looks = self.store.look(writer, partitions)
            with self.buffer.lock:
                self.buffer.catch_up()  # `is_ours` must know each token that a shard may have: the seal comes first
                for partition, look in zip(partitions, looks, strict=True):
                    if look is not None:
                        is_ours = self._judge.is_ours(partition, look.watermark)
                        self.kept.freshness.note_look(partition, writer, look, asked_at, is_ours=is_ours)

    def tell_visited(self) -> None:
        """Report in the journal the known counts of the pages visited since the last call. Takes the lock itself."""
        self._telling.tell()

    def _known_of(self, pages: Iterable[str]) -> list[tuple[str, Known]]:
        """Return the pages whose count this process knows, each with the count to report."""
        # Each count may claim the segments up to the floor: their visits are in it, and no merged file, which other
        # processes might still have, reaches across the floor.
        to = self.buffer.included_to
        found = ((page, self.kept.peek(page)) for page in pages)
        return [
            (page, Known(known.losses, max(known.segment, to), known.stored))
            for page, known in found
            if known is not None
        ]

    # -- counts that other processes have read ---------------------------------------------------------------------

    def _forget_all(self) -> None:
        """Clear the cache after the buffer was loaded anew: the tables that cached counts relied on may be gone."""
        self.kept.clear()
        for heard in self._listening:
            heard.update(dict.fromkeys(heard))
        self._telling.start_anew()

    def _hear(self, page: str, known: Known) -> None:
        """Take over a count from a line `read` of the journal, which some process has appended."""
        buffer = self.buffer
        self._told[partition_of(page)] += 1
        mine = self.kept.peek(page)
        included = segment_of(buffer.state.confirmed.get(partition_of(page), NO_WATERMARK))
        raised = buffer.tables.raised(page, known, max(included, buffer.included_to), included)
        for heard in self._listening:
            if page in heard:
                told = heard[page]
                heard[page] = self._judge.later(page, told, raised) if told and raised else raised
        if raised is None:
            # The process that appended the line was idle for too long before: its count includes so few segments that
            # the tables here can no longer add the others. So the page must be read anew.
            self.kept.forget(page)
        elif mine is None:
            self.kept.keep(page, raised, NO_NUMBER, NOT_FRESH)
        else:
            self.kept.amend(page, self._judge.later(page, mine, raised))

    def _version(self, page: str) -> Version:
        """Return a value that changes when visits leave the tables, and when a count of the partition is reported."""
        return self.buffer.loads, self.buffer.tables.version, self._told[partition_of(page)]

    # -- reading the shards ----------------------------------------------------------------------------------------

    def _read(self, pages: Sequence[str]) -> dict[str, Read | StoreError]:
        """Return the counts of the pages; read those that are not fresh. Takes the lock itself. Raises StoreError."""
        heard: Heard = dict.fromkeys(pages)
        with self.buffer.lock:
            self._listening.append(heard)
        try:
            return self._read_listening(pages, heard)
        finally:
            with self.buffer.lock:
                self._listening = [other for other in self._listening if other is not heard]

    def _read_listening(self, pages: Sequence[str], heard: Heard) -> dict[str, Read | StoreError]:
        """Do as `_read`; `heard` collects what other processes report of these pages meanwhile."""
        found: dict[str, Read | StoreError] = {}
        retained: Mapping[Segment, Mapping[str, int]] | None = None
        for _ in range(_READ_TRIES):
            with self.buffer.lock:
                self.buffer.catch_up()
                state, loads = self.buffer.state, self.buffer.loads
                pages = [page for page in pages if page not in found]
                fresh = {page: known for page in pages if (known := self.kept.known(page))}
                found |= {page: Read(known, self._version(page)) for page, known in fresh.items()}
                pages = [page for page in pages if page not in fresh]
            if not pages:
                return found
            writer, asked_at = self.buffer.writer, self.kept.cache.clock()
            stored = self._ask(writer, pages)
            if self.buffer.is_renamed():
                # The writer's id has changed: the watermarks under the old id do not cover batches of the new one.
                self.buffer.tick(self.rebase)
                retained = None
                continue
            with self.buffer.lock:
                # This reads what others have reported since, and the seal of each segment whose token a shard has.
                self.buffer.catch_up()
                if state is not self.buffer.state or loads != self.buffer.loads:
                    retained = None
                    continue  # this read may precede the flush that was confirmed, and would look like a loss
                judged = {
                    page: one
                    if isinstance(one, StoreError)
                    else self._judge.judge(page, one, self._mine(page, heard), retained)
                    for page, one in stored.items()
                }
                reads = {page: known for page, known in judged.items() if isinstance(known, Known)}
                numbers = {page: self._number(page, writer, stored[page], asked_at) for page in reads}
                found |= self._take_over(reads, numbers, heard)
                found |= {page: error for page, error in judged.items() if isinstance(error, StoreError)}
            if None in judged.values():
                try:
                    retained = self.buffer.read_retained()
                except FileNotFoundError:
                    retained = None  # the flush has sent the shard what it lacked, and deleted a segment since
        late = StoreError(self.store.owner(pages[0]), "a flush was confirmed during every read")
        return {**dict.fromkeys(pages, late), **found}

    def _ask(self, writer: str, pages: Sequence[str]) -> dict[str, Stored | StoreError]:
        """Read pages together. If the shard refuses, read them one by one: one page may hold what is no count."""
        try:
            return dict(zip(pages, self.store.read(writer, pages), strict=True))
        except StoreRefusedError as error:
            if len(pages) == 1:
                return {pages[0]: error}
        return {page: found for each in pages for page, found in self._ask(writer, [each]).items()}

    def _number(self, page: str, writer: str, stored: Stored | StoreError, asked_at: float) -> int:
        """Return the number of a read of a page; see `counting.freshness`."""
        partition = partition_of(page)
        if not isinstance(stored, Stored) or not self._judge.is_plain(partition, stored.watermark):
            return NO_NUMBER
        look = Look(stored.watermark, stored.losses, stored.stamp)
        is_ours = self._judge.is_ours(partition, stored.watermark)
        return self.kept.freshness.note_read(partition, writer, look, asked_at, is_ours=is_ours)

    def _mine(self, page: str, heard: Heard) -> Known | None:
        """Return the known count of a page that is being read: from the cache, else what others have reported."""
        known = self.kept.peek(page)
        return heard[page] if known is None else known

    def _take_over(
        self, reads: Mapping[str, Known], numbers: Mapping[str, int], heard: Heard
    ) -> dict[str, Read | StoreError]:
        """Cache the counts that were read, and report those that changed; return each page's count or an error."""
        before = {page: self._mine(page, heard) for page in reads}
        changed = [(page, known) for page, known in reads.items() if known != before[page]]
        loads = self.buffer.loads
        reported = not changed or self.buffer.report(changed)
        if loads != self.buffer.loads:
            return {}  # the journal was loaded anew: these pages are read again
        found: dict[str, Read | StoreError] = {}
        for page, known in reads.items():
            mine = before[page]
            if reported:
                # The report may have brought in a higher count that another process has reported meanwhile.
                now = self._mine(page, heard) or known
                self.kept.keep(page, now, numbers[page])
                found[page] = Read(now, self._version(page))
            # A count that could not be reported is not used: the next answer may come from another process, which does
            # not know it, and the reader would see the count go down.
            elif mine:
                self.kept.keep(page, mine, NO_NUMBER, LAST_KNOWN_SECONDS)
                found[page] = Read(mine, self._version(page))
            else:
                found[page] = StoreError(self.store.owner(page), _UNTOLD)
        return found
