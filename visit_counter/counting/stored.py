"""What this host knows of stored counts: read from the shards, cached, and told to all its processes.

A count that a process has read, and that says more than the host knew, is told in the journal before any answer relies
on it. So every process knows it that looks at the end of the journal, and no reader sees a count go down, whichever
process answers. A read that says less is not believed: the shard came back with older data, or a replica took its
place, and a flush will bring what it lacks. What is lost for good is told by a number in the partition itself,
`losses`: with a higher one, lower counts are true.

What was read stays fresh without another read as long as nobody else has changed its partition (`counting.freshness`).

The rule that keeps a count right while segments move from pending to stored: the journal, the cached entries and the
tables of pending visits are looked at together, under the buffer's lock. A read of a shard happens outside of it and is
taken over only if nothing that it depends on has moved meanwhile; else it is made again.
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

# How often a read is made again because a flush was confirmed while it was under way. Each needs a flush of its own.
_READ_TRIES = 5
# Partitions are looked at when what was read of them would be fresh for less than this share of the cache time.
_SOON = 0.5
# How many partitions one call looks at: the interpreter is held for some hundred microseconds.
_LOOK_PARTITIONS = 128

_UNTOLD = "what was read cannot be told to the other workers: the journal takes no more now"

Version = tuple[int, int, int]
# Of the pages of a read: what others have told while it was under way, if anything.
Heard = dict[str, Known | None]


class Read(NamedTuple):
    """What is known of a page that was read; true as long as the page's version is this one."""

    known: Known
    version: Version


class Loaded(NamedTuple):
    """The pages that were loaded for some asks: what is known of them now, or why that cannot be."""

    read: dict[str, Read]
    errors: dict[str, StoreError]


class StoredCounts:
    """The stored counts that this process knows.

    Methods expect the buffer's lock to be held unless they say otherwise.
    """

    def __init__(self, buffer: WriteBuffer, store: Store, cache: LocalCache) -> None:
        self.buffer, self.store = buffer, store
        self._reads: SingleFlight[Read | StoreError] = SingleFlight()
        self._losses = 0  # of the state when they were last noticed
        # For each read that is under way: what others have told of its pages meanwhile. A small cache may let go of it.
        self._listening: list[Heard] = []
        self._told: Counter[int] = Counter()  # by partition: how often others have told of one of its pages
        self._judge = Judge(buffer, store)
        self.kept = KeptCounts(cache, store)
        self._telling = Telling(buffer, self._known_of)
        buffer.on_load = self._forget_all
        buffer.on_read = self._hear
        buffer.known_of = self._known_of

    def loaded(self, page: str, loaded: Loaded) -> Known | None:
        """Return what is known of a page that was just loaded, or could not be."""
        known = self.kept.peek(page)
        if known is None and page in loaded.read:
            # The cache is too small for it. It is true unless it was raised since, or others have told of it.
            read = loaded.read[page]
            known = read.known if read.version == self._version(page) else None
        return known

    def load(self, pages: Iterable[str], loaded: Loaded) -> None:
        """Read the pages that are not known, with one call for each shard. Takes the lock itself, may wait.

        If a shard cannot be asked, a last known count is good for a moment more, so that the next visitors of the
        page do not ask again, each in turn.
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
        """Raise a cached count by the visits of a table that is about to be dropped."""
        known = self.kept.peek(page)
        if known is not None and known.segment < last:
            self.kept.amend(page, Known(known.losses, last, known.stored + visits))
        for heard in self._listening:
            told = heard.get(page)
            if told is not None and told.segment < last:
                heard[page] = Known(told.losses, last, told.stored + visits)

    def notice_losses(self) -> None:
        """Read every page anew once a flush of this host has found that a shard has lost visits for good.

        Takes the lock itself.
        """
        with self.buffer.lock:
            if self._losses != self.buffer.state.losses:
                self._losses = self.buffer.state.losses
                self.kept.expire()

    def look(self) -> None:
        """Look at the partitions whose pages are in use, so that these need not be read again one by one.

        Takes the lock itself; asks shards, some partitions at a time.
        """
        with self.buffer.lock:
            due = self.kept.freshness.due(self.kept.cache.ttl_seconds * _SOON)
        for first in range(0, len(due), _LOOK_PARTITIONS):
            partitions = due[first : first + _LOOK_PARTITIONS]
            writer, asked_at = self.buffer.writer, self.kept.cache.clock()
            looks = self.store.look(writer, partitions)
            with self.buffer.lock:
                self.buffer.catch_up()  # a flush seals a segment before its token is in a shard
                for partition, look in zip(partitions, looks, strict=True):
                    if look is not None:
                        is_ours = self._judge.is_ours(partition, look.watermark)
                        self.kept.freshness.note_look(partition, writer, look, asked_at, is_ours=is_ours)

    def tell_visited(self) -> None:
        """Tell what is known of pages that were visited since the last call. Takes the lock itself."""
        self._telling.tell()

    def _known_of(self, pages: Iterable[str]) -> list[tuple[str, Known]]:
        """Return those of the pages of which something is known, and what can be told of them."""
        # Up to the floor nothing is pending here any more, and no file that others still have reaches across it.
        to = self.buffer.included_to
        found = ((page, self.kept.peek(page)) for page in pages)
        return [
            (page, Known(known.losses, max(known.segment, to), known.stored))
            for page, known in found
            if known is not None
        ]

    # -- what others have read -------------------------------------------------------------------------------------

    def _forget_all(self) -> None:
        """Start anew with the buffer: the tables that the cached counts relied on may be gone."""
        self.kept.clear()
        for heard in self._listening:
            heard.update(dict.fromkeys(heard))
        self._telling.start_anew()

    def _hear(self, page: str, known: Known) -> None:
        """Take over what a line of the journal says that some process has read."""
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
            # Who wrote it rested too long: what it says cannot be compared with anything here, and must be read anew.
            self.kept.forget(page)
        elif mine is None:
            self.kept.keep(page, raised, NO_NUMBER, NOT_FRESH)
        else:
            self.kept.amend(page, self._judge.later(page, mine, raised))

    def _version(self, page: str) -> Version:
        """Return what changes whenever visits leave the tables, and whenever others tell of a page."""
        return self.buffer.loads, self.buffer.tables.version, self._told[partition_of(page)]

    # -- reading the shards ----------------------------------------------------------------------------------------

    def _read(self, pages: Sequence[str]) -> dict[str, Read | StoreError]:
        """Return what is known of the pages; read what is not fresh. Takes the lock itself. Raises StoreError."""
        heard: Heard = dict.fromkeys(pages)
        with self.buffer.lock:
            self._listening.append(heard)
        try:
            return self._read_listening(pages, heard)
        finally:
            with self.buffer.lock:
                self._listening = [other for other in self._listening if other is not heard]

    def _read_listening(self, pages: Sequence[str], heard: Heard) -> dict[str, Read | StoreError]:
        """Do as `_read`, while what others tell of these pages is kept in `heard`."""
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
                # Under the id that was asked for, a shard says nothing of what was sent under the new one.
                self.buffer.tick(self.rebase)
                retained = None
                continue
            with self.buffer.lock:
                # What others have told since; and a flush seals a segment before its token is in a shard.
                self.buffer.catch_up()
                if state is not self.buffer.state or loads != self.buffer.loads:
                    retained = None
                    continue  # nobody could tell a shard that lost something from a read before its flush
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
                    retained = None  # the flush has made the shard whole, and forgotten a segment
        late = StoreError(self.store.owner(pages[0]), "a flush was confirmed during every read")
        return {**dict.fromkeys(pages, late), **found}

    def _ask(self, writer: str, pages: Sequence[str]) -> dict[str, Stored | StoreError]:
        """Read pages together; where that is refused one by one, since it may be for one page that holds no count."""
        try:
            return dict(zip(pages, self.store.read(writer, pages), strict=True))
        except StoreRefusedError as error:
            if len(pages) == 1:
                return {pages[0]: error}
        return {page: found for each in pages for page, found in self._ask(writer, [each]).items()}

    def _number(self, page: str, writer: str, stored: Stored | StoreError, asked_at: float) -> int:
        """Return the number that a read of a page was under; see `counting.freshness`."""
        partition = partition_of(page)
        if not isinstance(stored, Stored) or not self._judge.is_plain(partition, stored.watermark):
            return NO_NUMBER
        look = Look(stored.watermark, stored.losses, stored.stamp)
        is_ours = self._judge.is_ours(partition, stored.watermark)
        return self.kept.freshness.note_read(partition, writer, look, asked_at, is_ours=is_ours)

    def _mine(self, page: str, heard: Heard) -> Known | None:
        """Return what this process knows of a page that is being read, whether the cache still holds it or not."""
        known = self.kept.peek(page)
        return heard[page] if known is None else known

    def _take_over(
        self, reads: Mapping[str, Known], numbers: Mapping[str, int], heard: Heard
    ) -> dict[str, Read | StoreError]:
        """Keep what was read, and tell it if it is news; return what is now known, or why that cannot be answered."""
        before = {page: self._mine(page, heard) for page in reads}
        changed = [(page, known) for page, known in reads.items() if known != before[page]]
        loads = self.buffer.loads
        reported = not changed or self.buffer.report(changed)
        if loads != self.buffer.loads:
            return {}  # to be read again
        found: dict[str, Read | StoreError] = {}
        for page, known in reads.items():
            mine = before[page]
            if reported:
                # Others have perhaps told more meanwhile.
                now = self._mine(page, heard) or known
                self.kept.keep(page, now, numbers[page])
                found[page] = Read(now, self._version(page))
            # What cannot be told is not answered: another process may know less, and a reader would see that next.
            elif mine:
                self.kept.keep(page, mine, NO_NUMBER, LAST_KNOWN_SECONDS)
                found[page] = Read(mine, self._version(page))
            else:
                found[page] = StoreError(self.store.owner(page), _UNTOLD)
        return found
