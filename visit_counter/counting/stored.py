"""What this host knows of stored counts: read from the shards, cached, and told to all its processes.

A count that a process has read, and that says more than the host knew, is told in the journal before any answer relies
on it. So every process knows it that looks at the end of the journal, and no reader sees a count go down, whichever
process answers. A read that says less is not believed: the shard came back with older data, or a replica took its
place, and a flush will bring what it lacks. What is lost for good is told by a number in the partition itself,
`losses`: with a higher one, lower counts are true.

The rule that keeps a count right while segments move from pending to stored: the journal, the cached entries and the
tables of pending visits are looked at together, under the buffer's lock. A read of a shard happens outside of it and is
taken over only if nothing that it depends on has moved meanwhile; else it is made again.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from visit_counter.counting.single_flight import SingleFlight
from visit_counter.errors import StoreError, StoreRefusedError
from visit_counter.journal.records import Known
from visit_counter.shards.contract import NO_WATERMARK, Stored, is_base, segment_of
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visit_counter.counting.cache import LocalCache
    from visit_counter.journal.buffer import WriteBuffer
    from visit_counter.journal.pending import Table
    from visit_counter.journal.segments import Segment
    from visit_counter.shards.contract import Store

log = logging.getLogger(__name__)

# How often a read is made again because a flush was confirmed while it was under way. Each needs a flush of its own.
_READ_TRIES = 5
_LAST_KNOWN_SECONDS = 1.0
# Known, but not read less than the cache time ago.
_NOT_FRESH = -1.0
# How many pages one call of `tell_visited` handles under the lock: some hundred microseconds.
_TELL_PAGES = 256

Version = tuple[int, int]
# Of the pages of a read: what others have told while it was under way, if anything.
Heard = dict[str, Known | None]


class Read(NamedTuple):
    """What is known of a page that was read; true as long as the version of the tables is this one."""

    known: Known
    version: Version


def _known(kept: tuple[int, int, int] | None) -> Known | None:
    """Return what a tuple in the cache says; see `StoredCounts._keep`."""
    return None if kept is None else Known._make(kept)


class Loaded(NamedTuple):
    """The pages that were loaded for some asks: what is known of them now, or why that cannot be."""

    read: dict[str, Read]
    errors: dict[str, StoreError]


class StoredCounts:
    """The stored counts that this process knows.

    Methods expect the buffer's lock to be held unless they say otherwise.
    """

    def __init__(self, buffer: WriteBuffer, store: Store, cache: LocalCache) -> None:
        self.buffer, self.store, self.cache = buffer, store, cache
        self._reads: SingleFlight[Read | StoreError] = SingleFlight()
        self._losses = 0  # of the state when they were last noticed
        # For each read that is under way: what others have told of its pages meanwhile. A small cache may let go of it.
        self._listening: list[Heard] = []
        self._telling: tuple[Table, int] | None = None  # where `tell_visited` is: how many pages of which table
        buffer.on_load = self._forget_all
        buffer.on_read = self._hear
        buffer.known_of = self._known_of

    def known(self, page: str) -> Known | None:
        """Return what was read less than the cache time ago, or the last known count while the page's shard is down.

        Nobody waits for a shard that is known to be down, in a thread or in line for one: visits of the other shards'
        pages would wait behind them. The service's probes find out when it is back.
        """
        known = _known(self.cache.get(page))
        if known is None and self.store.is_down(page):
            known = self._keep_last_known(page)
        return known

    def loaded(self, page: str, loaded: Loaded) -> Known | None:
        """Return what is known of a page that was just loaded, or could not be."""
        known = self._peek(page)
        if known is None and page in loaded.read:
            # The cache is too small for it, or it could not be told. Nobody has raised what was read since.
            read = loaded.read[page]
            known = read.known if read.version == self._version() else None
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
                        self._keep_last_known(page)
                else:
                    raise found

    def rebase(self, page: str, visits: int, last: int) -> None:
        """Raise a cached count by the visits of a table that is about to be dropped."""
        known = self._peek(page)
        if known is not None and known.segment < last:
            self.cache.amend(page, (known.losses, last, known.stored + visits))
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
                self.cache.expire()

    def tell_visited(self) -> None:
        """Tell what is known of pages that were visited since the last call, unless their segment says so already.

        So the segments say of their pages what was stored, and a process that starts while a shard is down knows them.
        Takes the lock itself.
        """
        more = True
        while more:
            with self.buffer.lock:
                self.buffer.catch_up()
                more = self._tell_some()

    def _tell_some(self) -> bool:
        """Tell of some more pages; return whether there may be others."""
        tables = self.buffer.tables
        table, seen = self._telling or (tables.current, 0)
        pages = list(islice(table.visits, seen, seen + _TELL_PAGES))
        reported = table.reported | tables.current.reported if table is not tables.current else table.reported
        reads = self._known_of(page for page in pages if page not in reported)
        if reads and not self.buffer.report(reads):
            return False
        self._telling = table, seen + len(pages)
        if len(pages) == _TELL_PAGES:
            return True
        later = next((each for each in (*tables.sealed, tables.current) if each.first > table.last), None)
        if later is not None:
            self._telling = later, 0
        return later is not None

    def _known_of(self, pages: Iterable[str]) -> list[tuple[str, Known]]:
        """Return those of the pages of which something is known, and what can be told of them."""
        # Up to the floor nothing is pending here any more, and no file that others still have reaches across it.
        to = self.buffer.included_to
        found = ((page, self._peek(page)) for page in pages)
        return [
            (page, Known(known.losses, max(known.segment, to), known.stored))
            for page, known in found
            if known is not None
        ]

    # -- what others have read -------------------------------------------------------------------------------------

    def _forget_all(self) -> None:
        """Start anew with the buffer: the tables that the cached counts relied on may be gone."""
        self.cache.clear()
        for heard in self._listening:
            heard.update(dict.fromkeys(heard))
        self._telling = None

    def _hear(self, page: str, known: Known) -> None:
        """Take over what a line of the journal says that some process has read."""
        buffer = self.buffer
        mine = self._peek(page)
        included = segment_of(buffer.state.confirmed.get(partition_of(page), NO_WATERMARK))
        raised = buffer.tables.raised(page, known, max(included, buffer.included_to), included)
        for heard in self._listening:
            if page in heard:
                told = heard[page]
                heard[page] = self._later(page, told, raised) if told and raised else raised
        if raised is None:
            # Who wrote it rested too long: what it says cannot be compared with anything here, and must be read anew.
            self.cache.delete(page)
        elif mine is None:
            self._keep(page, raised, _NOT_FRESH)
        else:
            self.cache.amend(page, tuple(self._later(page, mine, raised)))

    def _later(self, page: str, mine: Known, other: Known) -> Known:
        """Return the later of two: what says more of the same moment, unless visits were lost for good in between."""
        pending = self.buffer.tables.pending
        mine_is_later = (mine.losses, mine.stored + pending(page, mine.segment)) >= (
            other.losses,
            other.stored + pending(page, other.segment),
        )
        return mine if mine_is_later else other

    def _keep_last_known(self, page: str) -> Known | None:
        known = self._peek(page)
        if known is not None:
            # Not evicted either, as long as it is asked for.
            self._keep(page, known, _LAST_KNOWN_SECONDS)
        return known

    def _peek(self, page: str) -> Known | None:
        """Return what the cache has of a page, fresh or not."""
        return _known(self.cache.peek(page))

    def _keep(self, page: str, known: Known, seconds: float | None = None) -> None:
        """Put what is known of a page into the cache; it stays fresh for the cache time, or for so many seconds.

        As a plain tuple: the garbage collector takes such a one, of numbers only, off its list, and never one of a
        class. With 100,000 pages that is most of what it has to walk over.
        """
        self.cache.set(page, tuple(known), timeout=seconds)

    def _version(self) -> Version:
        """Return what changes whenever visits leave the tables."""
        return self.buffer.loads, self.buffer.tables.version

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
                fresh = {page: known for page in pages if (known := self.known(page))}
                found |= {page: Read(known, self._version()) for page, known in fresh.items()}
                pages = [page for page in pages if page not in fresh]
            if not pages:
                return found
            stored = self._ask(pages)
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
                    else self._judge(page, one, self._mine(page, heard), retained)
                    for page, one in stored.items()
                }
                reads = {page: known for page, known in judged.items() if isinstance(known, Known)}
                found |= self._take_over(reads, heard)
                found |= {page: error for page, error in judged.items() if isinstance(error, StoreError)}
            if None in judged.values():
                try:
                    retained = self.buffer.read_retained()
                except FileNotFoundError:
                    retained = None  # the flush has made the shard whole, and forgotten a segment
        late = StoreError(self.store.owner(pages[0]), "a flush was confirmed during every read")
        return {**dict.fromkeys(pages, late), **found}

    def _ask(self, pages: Sequence[str]) -> dict[str, Stored | StoreError]:
        """Read pages together; where that is refused one by one, since it may be for one page that holds no count."""
        try:
            return dict(zip(pages, self.store.read(self.buffer.writer, pages), strict=True))
        except StoreRefusedError as error:
            if len(pages) == 1:
                return {pages[0]: error}
        return {page: found for each in pages for page, found in self._ask([each]).items()}

    def _judge(
        self, page: str, stored: Stored, mine: Known | None, retained: Mapping[Segment, Mapping[str, int]] | None
    ) -> Known | StoreError | None:
        """Return what a read says of a page; None if it takes the retained segments to know that."""
        buffer = self.buffer
        confirmed = buffer.state.confirmed.get(partition_of(page), NO_WATERMARK)
        if self._is_foreign(stored.watermark, confirmed):
            return self._judge_foreign(page, stored, mine)
        has_base = stored.watermark == NO_WATERMARK and is_base(confirmed)
        segment = segment_of(confirmed if has_base else stored.watermark)
        if segment < segment_of(confirmed):
            # Less than the partition is known to have had: the shard came back with older data.
            if mine is not None and stored.losses <= mine.losses:
                return mine
            if retained is None:
                return None
            lacking = sum(visits.get(page, 0) for at, visits in retained.items() if segment < at.last)
            return Known(stored.losses, max(segment, buffer.included_to), stored.visits + lacking)
        # Nothing between the watermark and `included_to` was for this partition.
        read = Known(stored.losses, max(segment, buffer.included_to), stored.visits)
        return read if mine is None else self._later(page, mine, read)

    def _judge_foreign(self, page: str, stored: Stored, mine: Known | None) -> Known | StoreError:
        """Return what a read says that has the watermark of a copy of this journal.

        It includes what every partition includes. Of later segments nobody knows before the next flush.
        """
        included_to = self.buffer.included_to
        if self.buffer.tables.pending(page, included_to):
            return mine or StoreRefusedError(
                self.store.owner(page), "another journal uses this writer's id; the next flush takes a new one"
            )
        read = Known(stored.losses, included_to, stored.visits)
        return read if mine is None else self._later(page, mine, read)

    def _mine(self, page: str, heard: Heard) -> Known | None:
        """Return what this process knows of a page that is being read, whether the cache still holds it or not."""
        known = self._peek(page)
        return heard[page] if known is None else known

    def _is_foreign(self, watermark: str, confirmed: str) -> bool:
        """Tell whether a watermark under our writer's id is not of a segment that this journal has sealed."""
        if watermark in (NO_WATERMARK, confirmed):
            return False
        token = self.buffer.tables.token_of(segment_of(watermark))
        return token is not None and token != watermark

    def _take_over(self, reads: Mapping[str, Known], heard: Heard) -> dict[str, Read]:
        """Keep what was read, and tell it if it is news; return what is now known."""
        before = {page: self._mine(page, heard) for page in reads}
        changed = [(page, known) for page, known in reads.items() if known != before[page]]
        loads = self.buffer.loads
        reported = not changed or self.buffer.report(changed)
        if loads != self.buffer.loads:
            return {}  # to be read again
        found: dict[str, Read] = {}
        for page, known in reads.items():
            # Others have perhaps told more meanwhile. What cannot be told is not believed, since it would be less in
            # the next process; and not kept, so that the next one who asks reads it anew.
            now: Known = (self._mine(page, heard) or known) if reported else (before[page] or known)
            if reported or before[page]:
                self._keep(page, now, None if reported else _LAST_KNOWN_SECONDS)
            found[page] = Read(now, self._version())
        return found
