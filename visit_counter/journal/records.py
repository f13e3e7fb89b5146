"""The journal's records: one to a line; how they are written, read and added up. No I/O.

A segment is text, three fields to a line, with tabs between::

    a1430278<TAB>1<TAB>blog/hello
    0c4885aa<TAB>25<TAB>about
    fec99f90<TAB>flushed<TAB>7
    b6c1e2aa<TAB>read<TAB>0 6 1200 blog/hello
    58ff32bc<TAB>seal<TAB>8:6f1d2c3b9a04

1. the CRC-32 of the rest of the line, eight hexadecimal digits;
2. a number of visits, or the name of an event: `seal` (nothing behind this line counts; the argument is the segment's
   token, with ` fence` behind it if the file is in doubt and must be written anew), `flushed` (every partition includes
   the segments up to this number), `merged` (the segments `first-last` are one file now), `read` (the stored count of a
   page that a process has read: see `Known`), `restored` (this file was written anew: see `Restored`), `reread` (this
   older segment was written anew), `again` (the lines behind this one are visits that this older segment lacked when it
   was sent; with ` whole`, they are all of its visits), `probe` (only tests whether the disk takes a line);
3. the page, or the argument. No page holds a control character, so tabs and newlines delimit without escapes.

Every append is one `write()` to a file opened with O_APPEND, so the appends of several processes stay whole and
the order of the file is the order of events. An append that was cut (full disk, power loss, kill) leaves a piece
without a newline, and the next append continues on the same line. The last three fields of such a line are the later
record, which is whole. The piece before them was never acknowledged. `parse` returns the record and drops the piece.
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
# How many lines are cached, so that a line of a popular page is encoded, and parsed, only once. An entry takes some 200
# bytes, and pages that are visited only once fill the cache, too.
_KEPT_LINES = 1 << 14
# The most that `read_visits` takes: some hundred lines.
FEW_BYTES = 1 << 14


def encode(kind: bytes, argument: bytes) -> bytes:
    """Return one record as a line."""
    body = b"%b\t%b" % (kind, argument)
    return b"%08x\t%b\n" % (crc32(body), body)


@lru_cache(maxsize=_KEPT_LINES)
def visit_line(page: str, visits: int = 1) -> bytes:
    """Return the line that counts visits of a page; the lines of popular pages come from a cache."""
    return encode(b"%d" % visits, page.encode())


def tally_lines(visits: Tally) -> Iterator[bytes]:
    """Give the lines that count all visits of a tally, one for each page."""
    return (encode(b"%d" % number, page.encode()) for page, number in visits.items())


class Known(NamedTuple):
    """A page's stored count as this host knows it; it includes this host's segments up to number `segment`.

    `losses` says how often the page's partition has lost visits for good, as the partition itself reports it. A lower
    count is believed if it comes with a higher `losses`.
    """

    losses: int
    segment: int
    stored: int


# The stored count by (page, losses, segment). Of several counts under one key, the highest is the latest.
KnownCounts = dict[tuple[str, int, int], int]


def read_line(page: str, known: Known) -> bytes:
    """Return the line that reports a page's stored count to all processes of the host, also to later ones."""
    return encode(READ, b"%d %d %d %b" % (*known, page.encode()))


class Record(NamedTuple):
    """One record: `kind` is a number of visits in decimal digits, or the name of an event."""

    kind: bytes
    argument: bytes


def parse(line: bytes) -> Record | None:
    """Return the record of a line (given without its newline), or None if the line holds no whole record.

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
    """Return the visits that a line counts, or None for any other line."""
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
    """Return the visits of a few whole lines in their order, or None if there are other lines, which `Replay` reads.

    `data` has at most FEW_BYTES: the lines that another worker has appended since this one last read the file. A busy
    worker calls this some thousand times a second.
    """
    if not data.endswith(b"\n") or _READ_FIELD in data:
        return None
    visits = list(map(_visit_of_line, data[:-1].split(b"\n")))
    return cast("list[Visit]", visits) if all(visits) else None


class Restored(NamedTuple):
    """The argument of the line `restored`, in a file that was written anew.

    The lines before it hold all that the writing process had read of the segment. The lines behind it were appended to
    the file after somebody had cut it at byte `cut_at`. `at` is when it was written, in seconds of the clock of this
    boot.
    """

    cut_at: int
    at: float

    def encode(self) -> bytes:
        """Return the line."""
        return encode(RESTORED, b"%d %.1f" % self)

    @classmethod
    def of(cls, record: Record) -> Restored:
        """Return the values in a record of this kind."""
        cut_at, at = record.argument.split(b" ")
        return cls(int(cut_at), float(at))


@dataclass(slots=True)
class Replay:
    """The sum of the lines of a piece of a segment."""

    visits: Tally = field(default_factory=Tally)
    known: KnownCounts = field(default_factory=dict)
    sealed_as: str = ""  # the token of the seal, once a seal was read: nothing behind it is replayed
    fenced: bool = False  # whether that seal says that the file is in doubt
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
            return  # the end of the seal's line has not been read yet
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
        # Visits of one page are equal lines: `Counter` counts them in C, and each distinct line is parsed once.
        for line, times in Counter(lines).items():
            body = line[9:]
            kind, _, argument = body.partition(b"\t")
            # The two usual kinds of line are parsed here, without a call: a start, or a flush of many pages, spends
            # most of its time on them.
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
