"""The journal's records: one to a line; how they are written, read and added up. No I/O.

A segment is text, three fields to a line, with tabs between::

    a1430278<TAB>1<TAB>blog/hello
    0c4885aa<TAB>25<TAB>about
    fec99f90<TAB>flushed<TAB>7
    b6c1e2aa<TAB>read<TAB>0 6 1200 blog/hello
    58ff32bc<TAB>seal<TAB>8:6f1d2c3b9a04

1. the CRC-32 of the rest of the line, eight hexadecimal digits;
2. a number of visits, or what happened: `seal` (nothing behind this line counts; the segment's token follows, and
   ` fence` if the file is in doubt and is to be written anew), `flushed` (every partition includes the segments up to
   this number), `merged` (`first-last` are one file now), `read` (what a process has read of a page's stored count: see
   `Known`), `restored` (this file was written anew; `Restored`), `reread` (this older segment was written anew),
   `again` (the lines behind it are visits that this older segment, already sent, lacked; or all of its visits, with
   ` whole`), `probe` (nothing);
3. the page, or the argument. No page holds a control character, so tabs and newlines delimit without escapes.

Every append is one `write()` to a file opened with O_APPEND, so the appends of several processes stay whole and
the order of the file is the order of events. An append that was cut (full disk, power, kill) leaves a piece with no
newline; the next append continues on the same line. The last three fields of such a line are the later record,
entire, and the piece before them was never acknowledged: `parse` takes the one and drops the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast
from zlib import crc32

from visit_counter.model.visits import Tally, Visit, repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

SEAL = b"seal"
FLUSHED = b"flushed"
MERGED = b"merged"
READ = b"read"
RESTORED = b"restored"
REREAD = b"reread"
AGAIN = b"again"
PROBE = b"probe"
FENCE = b" fence"
WHOLE = b"whole"
_EVENTS = frozenset((SEAL, FLUSHED, MERGED, READ, RESTORED, REREAD, AGAIN, PROBE))
_READ_FIELD = b"\t%b\t" % READ
_SEAL_MARK = b"\tseal\t"
# Lines of popular pages are made, and read, once. Each takes some 200 bytes, and pages that are visited once fill this.
_KEPT_LINES = 1 << 14
# What `read_visits` is good for: some hundred lines.
FEW_BYTES = 1 << 14


def encode(kind: bytes, argument: bytes) -> bytes:
    """Return one record as a line."""
    body = b"%b\t%b" % (kind, argument)
    return b"%08x\t%b\n" % (crc32(body), body)


@lru_cache(maxsize=_KEPT_LINES)
def visit_line(page: str, visits: int = 1) -> bytes:
    """Return the line that counts visits of a page. Popular pages pay for it once."""
    return encode(b"%d" % visits, page.encode())


def tally_lines(visits: Tally) -> Iterator[bytes]:
    """Give the lines that count all visits of a tally, one for each page."""
    return (encode(b"%d" % number, page.encode()) for page, number in visits.items())


class Known(NamedTuple):
    """What is known of a page: its stored count, which includes this host's segments up to number `segment`.

    `losses` is how often its partition was told to have lost visits for good: with a higher number, lower counts are
    true.
    """

    losses: int
    segment: int
    stored: int


# The stored count by (page, losses, segment); for one segment the highest count is the latest.
KnownCounts = dict[tuple[str, int, int], int]


def read_line(page: str, known: Known) -> bytes:
    """Return the line that tells all processes of the host, and those that start later, what was read of a page."""
    return encode(READ, b"%d %d %d %b" % (*known, page.encode()))


class Record(NamedTuple):
    """One record: `kind` is a number of visits in decimal digits, or one of the events."""

    kind: bytes
    argument: bytes


def parse(line: bytes) -> Record | None:
    """Return the record of a line (without its newline), or None where there is none.

    A cut record before a whole one on the same line is dropped: see the top of this file.
    """
    fields = line.rsplit(b"\t", 2)
    if len(fields) != 3 or (fields[1] not in _EVENTS and not fields[1].isdigit()):
        return None
    head, kind, argument = fields
    try:
        claimed = int(head[-8:], 16)
    except ValueError:
        return None
    if len(head) < 8 or claimed != crc32(b"%b\t%b" % (kind, argument)):
        return None
    return Record(kind, argument)


def _read_visit(line: bytes) -> Visit | None:
    """Return the visits that a line counts, or None if it is anything else."""
    body = line[9:]
    if line[:9] == b"%08x\t" % crc32(body):
        kind, _, page = body.partition(b"\t")
        if kind.isdigit() and b"\t" not in page:
            return page.decode("utf-8", "replace"), int(kind)
    record = parse(line)
    if record is None or record.kind in _EVENTS:
        return None
    return record.argument.decode("utf-8", "replace"), int(record.kind)


_visit_of_line = lru_cache(maxsize=_KEPT_LINES)(_read_visit)


def read_visits(data: bytes) -> list[Visit] | None:
    """Return the visits of a few whole lines in their order, or None where `Replay` must take a closer look.

    They are at most FEW_BYTES: what another worker has appended since this one looked, some thousand times a second.
    """
    if not data.endswith(b"\n") or _READ_FIELD in data:
        return None
    visits = list(map(_visit_of_line, data[:-1].split(b"\n")))
    return cast("list[Visit]", visits) if all(visits) else None


class Restored(NamedTuple):
    """What the line `restored` of a file that was written anew says.

    The lines before it are what a process knew that had followed the segment; those behind it are what was appended
    after the file had been cut at byte `cut_at`. `at` is when, by the clock of this boot, in seconds.
    """

    cut_at: int
    at: float

    def encode(self) -> bytes:
        """Return the line."""
        return encode(RESTORED, b"%d %.1f" % self)

    @classmethod
    def of(cls, record: Record) -> Restored:
        """Return what a record of this kind says."""
        cut_at, at = record.argument.split(b" ")
        return cls(int(cut_at), float(at))


@dataclass(slots=True)
class Replay:
    """What a piece of a segment adds up to."""

    visits: Tally = field(default_factory=Tally)
    known: KnownCounts = field(default_factory=dict)
    sealed_as: str = ""  # the token, once a seal was met: nothing behind it is replayed
    fenced: bool = False  # that seal says that the file is in doubt
    events: list[Record] = field(default_factory=list)
    lines: int = 0
    unreadable: int = 0
    consumed: int = 0  # bytes, up to and including the last newline replayed

    def add(self, data: bytes) -> None:
        """Replay the whole lines of `data`; stop at a seal."""
        if self.sealed_as:
            return
        mark = data.find(_SEAL_MARK)
        while mark >= 0 and not self.sealed_as:
            self._add_until_seal(data, mark)
            mark = data.find(_SEAL_MARK, mark + 1)
        if not self.sealed_as:
            end = data.rfind(b"\n") + 1
            self._add_lines(data[:end])
            self.consumed += end

    def _add_until_seal(self, data: bytes, mark: int) -> None:
        end = data.find(b"\n", mark)
        if end < 0:
            return  # the seal itself is not whole yet
        start = data.rfind(b"\n", 0, mark) + 1
        record = parse(data[start:end])
        if record is not None and record.kind == SEAL:
            self._add_lines(data[:start])
            self.lines += 1
            self.consumed += end + 1
            self.fenced = record.argument.endswith(FENCE)
            self.sealed_as = record.argument.removesuffix(FENCE).decode("ascii", "replace")

    def _add_lines(self, data: bytes) -> None:
        lines = data.split(b"\n")
        lines.pop()
        self.lines += len(lines)
        visits: list[Visit] = []
        # The same page makes the same line, so equal lines are counted in C and each is read once.
        for line, times in Counter(lines).items():
            body = line[9:]
            kind, _, argument = body.partition(b"\t")
            # The two ordinary lines are read here: a start, or a flush of many pages, spends most of its time on them.
            is_whole = line[:9] == b"%08x\t" % crc32(body) and b"\t" not in argument
            if is_whole and kind == b"1":
                visits.append((argument.decode("utf-8", "replace"), times))
            elif is_whole and kind == READ:
                self._add_known(argument, times)
            elif visit := _read_visit(line):
                visits.append(repeated(visit, times))
            else:
                self._add_other(line, times)
        self.visits.add(visits)

    def _add_other(self, line: bytes, times: int) -> None:
        record = parse(line)
        if record is not None and record.kind == READ:
            self._add_known(record.argument, times)
        elif record is not None and record.kind in _EVENTS:
            self.events.append(record)
        else:
            self.unreadable += times

    def _add_known(self, argument: bytes, times: int) -> None:
        try:
            losses, segment, stored, page = argument.split(b" ", 3)
            at = page.decode("utf-8", "replace"), int(losses), int(segment)
            self.known[at] = max(int(stored), self.known.get(at, 0))
        except ValueError:
            self.unreadable += times
