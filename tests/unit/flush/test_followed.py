"""The flush may use a process's table in the place of a segment's file, where both say the same."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.host import Host
from visit_counter.journal import buffer as buffer_module
from visit_counter.journal import pending as pending_module
from visit_counter.journal.records import AGAIN, FLUSHED, Known, encode, visit_line
from visit_counter.journal.segments import Journal, Segment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from visit_counter.counting.counter import BufferedCounter
    from visit_counter.journal.records import Replay

FIRST = Segment(1, 1)


class OneHost(Host):
    """A host whose flushes ask its first process, and which notes what files they read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, followed=self._followed)
        self.first: BufferedCounter = self.process()
        self.other = self.process()

    def _followed(self, segment: Segment) -> Replay | None:
        return self.first.buffer.followed(segment)


@pytest.fixture
def host(tmp_path: Path) -> OneHost:
    return OneHost(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Segment]:
    """Return the segments whose files are read whole from now on."""
    segments: list[Segment] = []
    real = Journal.read

    def noting(self: Journal, segment: Segment) -> Replay:
        segments.append(segment)
        return real(self, segment)

    monkeypatch.setattr(Journal, "read", noting)
    return segments


def append(host: Host, data: bytes) -> None:
    descriptor = host.journal.open(host.journal.segments()[-1].last)
    os.write(descriptor, data)
    os.close(descriptor)


def test_a_table_says_of_a_followed_segment_what_its_file_says(host: OneHost) -> None:
    for number in range(200):
        counter = host.first if number % 3 else host.other
        counter.record(f"page/{number % 7}", 1 + number % 2)
        if number % 50 == 0:
            append(host, encode(FLUSHED, b"0"))
            host.other.buffer.report([(f"page/{number % 7}", Known(0, 0, number))])
    host.journal.seal(FIRST)
    append(host, visit_line("behind the seal, in the next one"))
    known, file = host.first.buffer.followed(FIRST), host.journal.read(FIRST)
    assert known is not None
    assert (known.visits, known.known, known.sealed_as) == (file.visits, file.known, file.sealed_as)
    assert known.known
    assert known.consumed == file.consumed


def test_a_flush_reads_no_file_that_its_process_has_followed(host: OneHost, read: list[Segment]) -> None:
    for _ in range(3):
        host.first.record("a", 1)
        host.other.record("b", 1)
    host.flusher.flush()
    assert (host.stored("a"), host.stored("b")) == (3, 3)
    assert read == []


def test_a_large_segment_becomes_a_line_a_page_also_if_it_is_not_read(host: OneHost, read: list[Segment]) -> None:
    host.first.buffer.report([("a", Known(0, 0, 0))])
    for _ in range(100):
        host.first.record("a", 1)
    size = host.journal.size_of(FIRST)
    host.flusher.flush()
    assert read == []
    assert host.journal.size_of(FIRST) < size / 10
    assert host.journal.read(FIRST).visits == {"a": 100}
    assert host.journal.read(FIRST).known


def _replace(host: OneHost) -> None:
    path = host.journal.path / FIRST.name
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


def _cut(host: OneHost) -> None:
    path = host.journal.path / FIRST.name
    os.truncate(path, path.stat().st_size - 1)


DOUBTS: dict[str, Callable[[OneHost], object]] = {
    "another file is in its place": _replace,
    "it was cut": _cut,
    "its table was made from the file": lambda host: host.first.buffer.upkeep.reread(FIRST),
    "the process is about to mend something": lambda host: host.first.buffer.mending.doubt(FIRST, "in doubt"),
}


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
def test_after_a_doubt_about_a_segment_its_file_decides(host: OneHost, doubt: Callable[[OneHost], object]) -> None:
    host.first.record("a", 1)
    host.journal.seal(FIRST)
    assert host.first.buffer.followed(FIRST) is not None
    doubt(host)
    assert host.first.buffer.followed(FIRST) is None


LINES = {
    "a line that cannot be read": b"nonsense\n",
    "visits that an older segment lacked": encode(AGAIN, b"0-0"),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_segment_with_more_than_visits_and_reads_is_read(host: OneHost, line: bytes) -> None:
    append(host, line)
    host.first.record("a", 1)
    host.journal.seal(FIRST)
    assert host.first.buffer.followed(FIRST) is None


def test_a_fenced_segment_is_not_taken_from_memory(host: OneHost) -> None:
    host.first.record("a", 1)
    descriptor = host.journal.open(1)
    host.journal.fence(1, [descriptor], 0)
    os.close(descriptor)
    assert host.first.buffer.followed(FIRST) is None


def test_a_segment_that_says_more_of_stored_counts_than_is_kept_is_read(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_module, "_KNOWN_PAGES", 2)
    for page in "abc":
        host.first.buffer.report([(page, Known(0, 0, 1))])
    host.journal.seal(FIRST)
    assert host.first.buffer.followed(FIRST) is None


def test_a_flush_does_not_wait_for_a_thread_that_may_wait_for_the_flush(
    host: OneHost, monkeypatch: pytest.MonkeyPatch, read: list[Segment]
) -> None:
    monkeypatch.setattr(buffer_module, "_PATIENCE_SECONDS", 0.01)
    host.first.record("a", 1)
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with host.first.buffer.lock:
            holds.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(60)
    host.flusher.flush()
    release.set()
    thread.join()
    assert host.stored("a") == 1
    assert read == [FIRST]


def test_a_flush_that_meets_the_end_of_the_journal_does_not_wait_for_its_own_lock(host: OneHost) -> None:
    host.first.record("a", 1)
    with host.journal.flush_lock(wait=True):
        host.journal.seal(FIRST)
        (host.journal.path / Segment(2, 2).name).unlink()
        # The process lacks the second segment, so the flush reads the file.
        assert host.first.buffer.followed(FIRST) is None
    assert host.journal.segments()[-1] == Segment(3, 3)
