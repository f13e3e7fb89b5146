"""The write buffer: one process's view of the journal."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.host import Host
from visit_counter.errors import JournalError, JournalFullError, UncertainError
from visit_counter.journal.records import Known, encode, visit_line
from visit_counter.journal.segments import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from visit_counter.journal.buffer import WriteBuffer


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def append(buffer: WriteBuffer, *pages: str) -> list[int]:
    with buffer.lock:
        return buffer.append([(page, 1) for page in pages])


def pending(buffer: WriteBuffer, page: str, after: int = 0) -> int:
    with buffer.lock:
        buffer.catch_up()
        return buffer.tables.pending(page, after)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: a full disk, for a moment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_each_visit_is_told_its_own_number(host: Host) -> None:
    buffer = host.process().buffer
    assert append(buffer, "a", "b", "a") == [1, 1, 2]
    assert append(buffer, "a") == [3]


def test_what_one_process_appends_the_others_count_at_once(host: Host) -> None:
    first, second = host.process().buffer, host.process().buffer
    append(first, "a")
    assert pending(second, "a") == 1
    assert append(second, "a") == [2]
    assert pending(first, "a") == 2


def test_a_process_that_starts_later_finds_all_that_is_pending(host: Host) -> None:
    append(host.process().buffer, "a", "a", "b")
    late = host.process().buffer
    assert (pending(late, "a"), pending(late, "b")) == (2, 1)
    assert late.pending_totals() == (3, 2)


def test_a_visit_behind_a_seal_is_written_again_into_the_next_segment(host: Host) -> None:
    first, second = host.process().buffer, host.process().buffer
    append(first, "a")
    host.journal.seal(host.journal.segments()[0])
    assert append(first, "a") == [1]
    assert pending(first, "a") == 2
    assert pending(first, "a", after=1) == 1
    assert pending(second, "a") == 2
    assert pending(host.process().buffer, "a") == 2


def test_a_process_that_slept_through_several_seals_counts_in_the_last_segment(host: Host) -> None:
    sleeper, other = host.process().buffer, host.process().buffer
    for _ in range(3):
        append(other, "a")
        host.journal.seal(host.journal.segments()[-1])
    append(sleeper, "a")
    assert pending(sleeper, "a") == 4
    assert pending(sleeper, "a", after=3) == 1
    assert pending(other, "a") == 4


def test_a_cut_line_of_another_process_costs_nobody_a_visit(host: Host) -> None:
    first, second = host.process().buffer, host.process().buffer
    path = host.journal.path / "0000000001.log"
    with path.open("ab") as file:
        file.write(visit_line("never acknowledged")[:-1])
    assert pending(second, "never acknowledged") == 0
    append(first, "a")
    append(first, "a")
    for buffer in (first, second, host.process().buffer):
        assert (pending(buffer, "a"), pending(buffer, "never acknowledged")) == (2, 0)


def test_a_disk_that_takes_no_byte_refuses_the_visit_and_then_recovers(host: Host) -> None:
    buffer = host.process().buffer
    append(buffer, "a")
    with file_size_limit((host.journal.path / "0000000001.log").stat().st_size):
        with pytest.raises(JournalError, match="cannot be written"):
            append(buffer, "a")
        assert pending(buffer, "a") == 1
    assert append(buffer, "a") == [2]
    assert pending(host.process().buffer, "a") == 2


def test_a_visit_whose_sync_fails_is_uncertain_and_every_process_counts_it_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, other = host.process(fsync="always").buffer, host.process(fsync="always").buffer

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(UncertainError, match="may have been counted"):
            append(buffer, "a")
    assert [pending(process, "a") for process in (buffer, other, host.process().buffer)] == [1, 1, 1]


def test_a_visit_is_uncertain_if_the_lines_before_it_cannot_be_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, other = host.process().buffer, host.process().buffer
    append(other, "b")

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(UncertainError, match="cannot be read"):
            append(buffer, "a")
    assert (pending(buffer, "a"), pending(buffer, "b"), pending(other, "a")) == (1, 1, 1)


@pytest.mark.parametrize("room", range(3 * len(visit_line("page"))))
def test_of_a_run_that_a_full_disk_cuts_exactly_the_whole_lines_count(host: Host, room: int) -> None:
    buffer, other = host.process().buffer, host.process().buffer
    whole = room // len(visit_line("page"))
    with file_size_limit(room):
        if whole:
            assert append(buffer, "page", "page", "page") == list(range(1, whole + 1))
        else:
            with pytest.raises(JournalError):
                append(buffer, "page", "page", "page")
    assert append(buffer, "page") == [whole + 1]
    for process in (buffer, other, host.process().buffer):
        assert pending(process, "page") == whole + 1


def test_a_journal_at_its_limit_refuses_before_it_writes(host: Host) -> None:
    buffer = host.process(max_bytes=100).buffer
    refused = 0
    for _ in range(20):
        try:
            append(buffer, "page")
        except JournalFullError:
            refused += 1
    assert refused
    assert pending(buffer, "page") == 20 - refused
    assert (host.journal.path / "0000000001.log").stat().st_size <= 100
    assert "limit" in (buffer.refusal() or "")


def test_at_the_limit_of_pending_pages_visits_are_refused(host: Host) -> None:
    buffer = host.process(max_pages=2).buffer
    append(buffer, "a", "b")
    with pytest.raises(JournalFullError, match="pages"):
        append(buffer, "c")
    assert pending(buffer, "c") == 0


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff\xfe\n\n\n", b"\n", b"a1430278\t1\tblog/hel", os.urandom(300)])
def test_whatever_the_tail_holds_a_process_starts_and_counts(host: Host, tail: bytes) -> None:
    append(host.process().buffer, "a")
    with (host.journal.path / "0000000001.log").open("ab") as file:
        file.write(tail)
    buffer = host.process().buffer
    append(buffer, "a", "b")
    assert (pending(buffer, "a"), pending(buffer, "b")) == (2, 1)
    assert pending(host.process().buffer, "a") == 2


def test_a_gap_in_the_segment_numbers_is_told_and_counting_goes_on(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = host.process().buffer
    for _ in range(3):
        append(buffer, "a")
        host.journal.seal(host.journal.segments()[-1])
    (host.journal.path / "0000000002.log").unlink()
    host.journal = Journal(host.journal.path, host.clock)
    counter = host.process()
    late = counter.buffer
    assert "segments 2 to 2 are missing" in caplog.text
    host.clock.now += 10  # every process that may know it has looked
    counter.tick()
    append(late, "a")
    assert pending(late, "a") == 3


def test_with_always_a_visit_is_on_the_disk_before_it_is_answered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    buffer = host.process(fsync="always").buffer
    append(buffer, "a")
    assert synced == [(host.journal.path / "0000000001.log").stat().st_size]


def test_with_everysec_the_tick_syncs_once_after_visits(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    append(host.process(fsync="everysec").buffer, "a")
    assert synced == []
    host.tick()
    host.tick()
    assert len(synced) == 1


def test_many_threads_of_several_processes_lose_and_double_nothing(host: Host) -> None:
    buffers = [host.process().buffer for _ in range(3)]
    barrier = threading.Barrier(6)
    told: list[int] = []

    def visit(buffer: WriteBuffer) -> None:
        barrier.wait()
        for _ in range(300):
            told.extend(append(buffer, "a"))

    threads = [threading.Thread(target=visit, args=(buffers[number % 3],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # No two visits were told the same number, and none was skipped: the file's order is the truth.
    assert sorted(told) == list(range(1, 1801))
    assert [pending(buffer, "a") for buffer in buffers] == [1800] * 3


def test_a_page_that_was_told_and_visited_is_kept_once(host: Host) -> None:
    """Its text is most of what a page takes: two copies of it would be a third more for each page never seen before."""
    buffer = host.process().buffer
    page = "new/page"
    with buffer.lock:
        assert buffer.report([(page, Known(0, 0, 5))])
        buffer.append([(page, 1)])
    assert [id(kept) for kept in (*buffer.tables.current.reported, *buffer.tables.current.visits)] == [id(page)] * 2


def test_unreadable_lines_are_reported_with_their_number(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    buffer = host.process().buffer
    with (host.journal.path / "0000000001.log").open("ab") as file:
        file.write(b"x\ny\n" + encode(b"1", b"a"))
    assert pending(buffer, "a") == 1
    assert "2 unreadable lines" in caplog.text


def test_a_next_segment_that_cannot_be_opened_costs_no_visit_and_doubles_none(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = host.process().buffer
    append(buffer, "a")
    host.journal.seal(host.journal.segments()[0])

    def fail(_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(host.journal, "open", fail)
    for _ in range(2):
        with pytest.raises(JournalError, match="Too many open files"):
            append(buffer, "a")
    monkeypatch.undo()
    assert append(buffer, "a") == [1]
    assert pending(buffer, "a") == 2
    assert pending(host.process().buffer, "a") == 2


def test_a_seal_lost_with_the_power_does_not_hide_the_segment_behind_it(host: Host) -> None:
    (host.journal.path).mkdir(parents=True)
    (host.journal.path / "0000000001.log").write_bytes(visit_line("a"))
    (host.journal.path / "0000000002.log").write_bytes(visit_line("a") * 2)
    buffer = host.process().buffer
    assert pending(buffer, "a") == 3
    append(buffer, "a")
    assert pending(host.process().buffer, "a") == 4


def test_a_segment_that_a_killed_process_made_has_its_name_synced_before_a_visit_goes_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.process()  # made the first segment
    synced: list[Path] = []
    monkeypatch.setattr(
        "visit_counter.journal.segments.Journal.sync_directory", lambda journal: synced.append(journal.path)
    )
    host.process()
    assert synced == [host.journal.path]


def test_what_a_process_tells_of_reads_is_followed_once_behind_all_that_others_have_written(host: Host) -> None:
    first, second = (host.process().buffer for _ in range(2))
    heard: list[tuple[str, int]] = []
    first.on_read = lambda page, known: heard.append((page, known.stored))
    assert first.report([("a", Known(0, 0, 7)), ("b", Known(0, 0, 8))])
    append(second, "c")
    second.report([("d", Known(0, 0, 9))])
    assert first.report([("e", Known(0, 0, 10))])
    assert sorted(heard) == [("a", 7), ("b", 8), ("d", 9), ("e", 10)]
    assert pending(first, "c") == 1
    for buffer in (first, second):
        buffer.catch_up()
        assert buffer.offset == os.fstat(buffer.descriptor).st_size
        assert buffer.tables.current.reported.keys() == {"a", "b", "d", "e"}
