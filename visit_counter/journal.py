"""The journal: append-only files that hold the pending visits of one host.

One directory, shared by all processes of the host::

    journal/writer             the writer's random id, made once
    journal/0000000007.log     a sealed segment
    journal/0000000008.log     the current segment: the first without a seal
    journal/0000000003-0000000006.log   four sealed segments merged into one
    journal/state.json         what the flush has confirmed (`visit_counter.state`)
    journal/*.lock             locks; they hold nothing

A segment is text, one record to a line, three fields between tabs::

    5d1c9f0e<TAB>1<TAB>blog/hello
    0b7c3d55<TAB>25<TAB>about
    c2f4a1de<TAB>flushed<TAB>7
    91ab77c0<TAB>seal<TAB>8:6f1d2c3b9a04

1. the CRC-32 of the rest of the line, eight hexadecimal digits;
2. a number of visits, or what happened: `seal` (nothing behind this line counts; the segment's token follows),
   `flushed` (every partition includes the segments up to this number), `merged` (`first-last` are one file now);
3. the page, or the argument. No page holds a control character, so tabs and newlines delimit without escapes.

Every append is one `write()` to a file opened with O_APPEND, so the appends of several processes stay whole and
the order of the file is the order of events. An append that was cut (full disk, power, kill) leaves a piece with no
newline; the next append continues on the same line. The last three fields of such a line are the later record,
entire, and the piece before them was never acknowledged: `parse` takes the one and drops the other.
"""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from visit_counter.errors import JournalError, StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

SEAL = b"seal"
FLUSHED = b"flushed"
MERGED = b"merged"
_EVENTS = frozenset((SEAL, FLUSHED, MERGED))
_SEAL_MARK = b"\tseal\t"

_NAME = re.compile(r"(\d{10})(?:-(\d{10}))?\.log")
_READ_BYTES = 4 << 20

# File systems whose O_APPEND is emulated by the client: two hosts' (or even two processes') appends may overwrite.
_UNSAFE_FILE_SYSTEMS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "davfs"))


def encode(kind: bytes, argument: bytes) -> bytes:
    """Return one record as a line."""
    body = b"%b\t%b" % (kind, argument)
    return b"%08x\t%b\n" % (crc32(body), body)


@lru_cache(maxsize=1 << 16)
def visit_line(page: str, visits: int = 1) -> bytes:
    """Return the line that counts visits of a page. Popular pages pay for it once."""
    return encode(b"%d" % visits, page.encode())


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


@dataclass(slots=True)
class Folded:
    """What a piece of a segment adds up to."""

    visits: dict[str, int] = field(default_factory=dict)
    sealed_as: str = ""  # the token, once a seal was met: nothing behind it was folded
    events: list[Record] = field(default_factory=list)
    lines: int = 0
    unreadable: int = 0
    consumed: int = 0  # bytes, up to and including the last newline folded

    def add(self, data: bytes) -> None:
        """Fold the whole lines of `data`; stop at a seal."""
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
            self.sealed_as = record.argument.decode("ascii", "replace")

    def _add_lines(self, data: bytes) -> None:
        # The same page makes the same line, so equal lines are counted in C and each is read once.
        lines = data.split(b"\n")
        lines.pop()
        self.lines += len(lines)
        for line, times in Counter(lines).items():
            record = parse(line)
            if record is None:
                self.unreadable += times
            elif record.kind in _EVENTS:
                self.events.append(record)
            else:
                page = record.argument.decode("utf-8", "replace")
                self.visits[page] = self.visits.get(page, 0) + int(record.kind) * times


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One journal file: the segments `first` to `last` (the same but for merged ones)."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.last:010}.log" if self.first == self.last else f"{self.first:010}-{self.last:010}.log"


def new_token(segment: int) -> str:
    """Return a watermark token for a segment that is being sealed."""
    return f"{segment}:{secrets.token_hex(6)}"


class Journal:
    """The directory and its files. Holds no file open; every method may be called from any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the directory and the writer's id if they are not there; raise StartupError if that cannot be."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            kind = file_system_of(self.path)
            if kind in _UNSAFE_FILE_SYSTEMS:
                raise StartupError(
                    f"the journal directory {self.path} is on {kind}, which does not keep the appends of several "
                    "processes whole; put VISITS_DATA_DIR on a local disk"
                )
            if not (self.path / "writer").exists():
                self.rename_writer(secrets.token_hex(8), replace=False)
        except OSError as error:
            raise StartupError(f"the journal directory {self.path} cannot be used: {error.strerror}") from None

    @property
    def state_path(self) -> Path:
        """Where `visit_counter.state` is kept."""
        return self.path / "state.json"

    @property
    def writer(self) -> str:
        """The writer's id; raises JournalError when it cannot be read."""
        try:
            return (self.path / "writer").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise JournalError(f"the writer's id cannot be read: {error}") from None

    def rename_writer(self, writer: str, *, replace: bool = True) -> None:
        """Give the writer a new id, durably. Without `replace`, an id made meanwhile by another process stays."""
        temporary = self.path / f"writer.{os.getpid()}.tmp"
        write_durably(temporary, f"{writer}\n".encode("ascii"))
        if replace:
            temporary.replace(self.path / "writer")
        else:
            try:
                os.link(temporary, self.path / "writer")
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        self.sync_directory()

    def segments(self) -> list[Segment]:
        """Return the segments there are, in order; one that a merged file contains is left out."""
        found = []
        for name in os.listdir(self.path):  # noqa: PTH208 - a list of names, several times faster than iterdir
            if match := _NAME.fullmatch(name):
                last = int(match[2] or match[1])
                found.append(Segment(int(match[1]), last))
        # A crash between writing a merged file and removing its parts leaves both: the wider one is whole.
        found.sort(key=lambda segment: (segment.first, -segment.last))
        kept: list[Segment] = []
        for segment in found:
            if not kept or segment.first > kept[-1].last:
                kept.append(segment)
        return kept

    def open(self, number: int, *, create: bool = True) -> int:
        """Open segment `number` for appending and reading; return the file descriptor."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return os.open(self.path / Segment(number, number).name, flags, 0o600)

    def read(self, segment: Segment) -> Folded:
        """Fold a whole segment file. Raises OSError."""
        folded = Folded()
        for data in _whole_lines(self.path / segment.name):
            folded.add(data)
        return folded

    def seal(self, segment: Segment) -> Folded:
        """Seal the current segment, put it on the disk, and return all that is in it. Raises OSError."""
        # The next segment comes first: whoever meets the seal finds it, and its number is never given out again.
        os.close(self.open(segment.last + 1))
        self.sync_directory()
        descriptor = self.open(segment.last)
        try:
            os.write(descriptor, encode(SEAL, new_token(segment.last).encode("ascii")))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        folded = self.read(segment)
        if not folded.sealed_as:
            raise OSError(f"segment {segment.last} could not be sealed")
        return folded

    def token_of(self, segment: Segment) -> str:
        """Return the token a sealed segment ends with, without reading the whole of a large one."""
        with (self.path / segment.name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            folded = Folded()
            folded.add(file.read())
        return folded.sealed_as or self.read(segment).sealed_as

    def write_segment(self, segment: Segment, visits: dict[str, int], token: str) -> None:
        """Write a sealed segment file with a line per page, durably, in the place of what it sums up."""
        temporary = self.path / f"{segment.name}.tmp"
        lines = [encode(b"%d" % count, page.encode()) for page, count in visits.items()]
        lines.append(encode(SEAL, token.encode("ascii")))
        write_durably(temporary, b"".join(lines))
        temporary.replace(self.path / segment.name)
        self.sync_directory()

    def forget(self, segment: Segment) -> None:
        """Remove a segment file."""
        (self.path / segment.name).unlink(missing_ok=True)

    def sync(self, segment: Segment) -> None:
        """Put a segment's bytes on the disk."""
        descriptor = os.open(self.path / segment.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self) -> None:
        """Put the directory's names on the disk: a file is not durable before its name is."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def size_bytes(self) -> int:
        """Return the bytes that all segment files take."""
        total = 0
        for entry in os.scandir(self.path):
            if _NAME.fullmatch(entry.name):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue  # forgotten meanwhile
        return total


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield rest + chunk[:end]
                rest = chunk[end:]
            else:
                rest += chunk


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and put its bytes on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that holds `path`, or "" where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target = path.resolve()
    best, kind = -1, ""
    for line in lines:
        _, mounted, found, *_ = line.split(" ")
        # The kernel writes blanks in mount points as octal escapes.
        mounted = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mounted)
        if target.is_relative_to(mounted) and len(mounted) >= best:
            best, kind = len(mounted), found
    return kind
