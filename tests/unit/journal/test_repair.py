"""The journal's files are written anew from what the processes know."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.host import Host
from tests.unit.journal.test_buffer import append, file_size_limit, pending
from visit_counter.errors import CountUnknownError, JournalError, UncertainError
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Journal
from visit_counter.model.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visit_counter.counting.counter import BufferedCounter


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.journal = Journal(tmp_path / "journal", host.clock)
    host.flusher.journal = host.journal
    yield host
    host.close()


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def current(host: Host) -> Path:
    return host.journal.path / host.journal.segments()[-1].name


def counted(host: Host, *counters: BufferedCounter) -> list[int]:
    """What each process, and one that starts now, has pending of the page `a`."""
    late = host.process()
    return [pending(counter.buffer, "a") for counter in (*counters, late)]


def damage(host: Host) -> str:
    return "\n".join(host.flusher_damage())


def visited(counter: BufferedCounter) -> int:
    """Count a visit of the page `a`; return its count."""
    answer = counter.record("a")
    assert isinstance(answer, Answer)
    return answer.visits


def assert_answers_nothing(counter: BufferedCounter) -> None:
    for ask in (counter.record, counter.count):
        with pytest.raises((JournalError, CountUnknownError), match="missing"):
            ask("a")


def settle(host: Host) -> None:
    """Let the flush go on with what was mended."""
    host.clock.now += 10


def test_after_a_failed_sync_visits_are_refused_until_the_segment_is_written_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = host.process(), host.process()
    append(first.buffer, "a")
    before = current(host).stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr("visit_counter.journal.segments.write_durably", fail)
        first.tick()
        for counter in (first, second):
            assert pending(counter.buffer, "a") == 1  # and meets the fence
            with pytest.raises(JournalError):
                append(counter.buffer, "a")
            assert counter.buffer.refusal()
    host.tick()
    assert [counter.buffer.refusal() for counter in host.counters] == [None, None]
    assert append(first.buffer, "a") == append(second.buffer, "b") == [1]
    assert counted(host, first, second) == [2, 2, 2]
    assert (host.journal.path / "0000000001.log").stat().st_ino != before
    assert "cannot be synced" in damage(host)


def test_a_sync_that_failed_once_is_not_healed_by_one_that_works(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr("visit_counter.journal.segments.write_durably", fail)
        counter.tick()
    before = (host.journal.path / "0000000001.log").stat().st_ino
    counter.tick()
    assert (host.journal.path / "0000000001.log").stat().st_ino != before


def test_a_failure_that_lasts_is_logged_once(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr("visit_counter.journal.segments.write_durably", fail)
        for _ in range(5):
            counter.tick()
    assert len(caplog.records) == 1
    counter.tick()
    assert "visits are accepted again" in caplog.text
    assert len(caplog.records) == 2


def test_with_fsync_always_a_failed_sync_is_mended_and_its_visit_counts_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = host.process(fsync="always")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(UncertainError):
            append(counter.buffer, "a")
    with pytest.raises(JournalError, match="synced"):
        append(counter.buffer, "a")
    counter.tick()
    append(counter.buffer, "a")
    assert counted(host, counter) == [2, 2]


def test_a_removed_segment_is_written_anew_within_one_look_and_told(host: Host) -> None:
    first, second = host.process(), host.process()
    append(first.buffer, "a", "a")
    current(host).unlink()
    append(second.buffer, "a")
    host.tick()
    append(second.buffer, "a")
    assert counted(host, first, second) == [4, 4, 4]
    assert "gone" in damage(host)
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 4


def test_a_removed_directory_comes_back_with_everything_that_a_process_knows(host: Host) -> None:
    first, second = host.process(), host.process()
    append(first.buffer, "a")
    host.flusher.flush()
    host.tick()
    append(first.buffer, "a")
    host.journal.seal(host.journal.segments()[-1])
    append(second.buffer, "a")
    writer = host.journal.writer
    shutil.rmtree(host.journal.path)
    append(second.buffer, "a")
    host.tick()
    host.tick()  # the first one did not know the last segment, which the second one has written anew
    append(first.buffer, "a")
    assert host.journal.writer == writer
    assert counted(host, first, second) == [4, 4, 4]
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 5
    assert "gone" in damage(host)


def test_where_a_directory_cannot_be_made_again_visits_are_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    shutil.rmtree(host.journal.path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fail)
        host.tick()
        with pytest.raises(JournalError, match="cannot be mended"):
            append(counter.buffer, "a")
        assert counter.buffer.refusal()
    host.tick()
    append(counter.buffer, "a")
    assert counted(host, counter) == [2, 2]


@pytest.mark.parametrize("size", [0, 1, 25, 36])
def test_of_a_segment_that_is_cut_nothing_acknowledged_is_lost_or_counted_twice(host: Host, size: int) -> None:
    first, second = host.process(), host.process()
    append(first.buffer, *["a"] * 5)
    assert pending(second.buffer, "a") == 5
    append(first.buffer, *["a"] * 3)
    os.truncate(current(host), size)
    with pytest.raises((JournalError, UncertainError)):
        append(first.buffer, "b")
    assert pending(first.buffer, "a") == 8
    second.tick()  # it knows less
    first.tick()
    host.tick()
    append(first.buffer, "a")
    assert counted(host, first, second) == [9, 9, 9]
    assert "was cut" in damage(host)
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 9


def test_a_segment_that_was_edited_in_place_is_written_anew(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a", "a", "a")
    path = current(host)
    path.write_bytes(path.read_bytes().replace(b"a", b"x"))
    counter.tick()
    assert counted(host, counter) == [3, 3]


def test_a_segment_that_was_replaced_by_an_older_copy_is_written_anew(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    copy = shutil.copy(current(host), host.journal.path / "copy")
    append(counter.buffer, "a")
    Path(copy).replace(current(host))
    counter.tick()
    append(counter.buffer, "a")
    assert counted(host, counter) == [3, 3]


def test_a_waiting_segment_that_vanished_is_written_anew_with_its_token(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    segment = host.journal.segments()[0]
    token = host.journal.seal(segment).sealed_as
    counter.tick()
    (host.journal.path / segment.name).unlink()
    counter.tick()
    assert host.journal.token_of(segment) == token
    assert counted(host, counter) == [1, 1]


def test_the_writers_id_and_the_state_are_put_back(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    host.flusher.flush()
    host.tick()
    writer, floor = host.journal.writer, counter.buffer.state.floor
    (host.journal.path / "writer").unlink()
    host.journal.state_path.unlink()
    host.tick()
    assert host.journal.writer == writer
    append(counter.buffer, "a")
    host.flusher.flush()
    host.tick()
    assert counter.buffer.state.floor > floor
    assert host.stored("a") == 2


def test_a_journal_whose_flush_was_killed_while_it_took_a_new_id_is_no_other_one(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    host.flusher.flush()
    host.tick()
    append(counter.buffer, "a")
    host.journal.rename_writer("0123456789abcdef")
    state = Checkpoint.load(host.journal.state_path)
    state.save(host.journal.state_path)
    counter.tick()
    assert counter.buffer.writer == state.writer  # under which everything was sent
    os.truncate(current(host), 0)
    counter.tick()
    append(counter.buffer, "a")
    assert host.journal.writer == "0123456789abcdef"
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 3


def test_a_process_that_starts_without_the_current_segment_leaves_its_number_to_who_knows_it(host: Host) -> None:
    first = host.process()
    append(first.buffer, "a")
    current(host).unlink()
    second = host.process()
    host.tick()
    second.tick()
    append(first.buffer, "a")
    append(second.buffer, "a")
    assert counted(host, first, second) == [3, 3, 3]
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 3


def test_a_process_that_starts_without_a_removed_segment_answers_nothing_until_it_was_written_anew(host: Host) -> None:
    first = host.process()
    assert [visited(first) for _ in range(3)] == [1, 2, 3]
    current(host).unlink()
    second = host.process()
    assert_answers_nothing(second)
    assert visited(first) == 4
    first.tick()
    second.tick()
    assert second.count("a").visits == 4
    assert visited(second) == 5
    assert first.count("a").visits == 5


def test_a_process_that_rested_when_the_next_segment_was_removed_answers_nothing_until_it_is_back(host: Host) -> None:
    first, second = host.process(), host.process()
    first.record("a")
    host.journal.seal(host.journal.segments()[-1])
    first.record("a")
    current(host).unlink()
    assert_answers_nothing(second)
    assert visited(first) == 3
    first.tick()
    second.tick()
    assert visited(second) == 4
    assert first.count("a").visits == 4


def test_a_segment_that_nobody_writes_anew_is_waited_for_only_so_long(host: Host) -> None:
    host.process().buffer.close()
    host.counters.clear()
    current(host).unlink()
    counter = host.process()
    assert_answers_nothing(counter)
    with host.journal.flush_lock(wait=True):
        settle(host)
        counter.tick()
    counter.tick()
    assert_answers_nothing(counter)  # a flush was under way: who knows the segment could not write it
    settle(host)
    counter.tick()
    assert visited(counter) == 1


def test_a_flush_does_not_make_a_removed_segment_again(host: Host) -> None:
    first = host.process()
    first.record("a")
    host.journal.seal(host.journal.segments()[-1])
    first.record("a")
    removed = current(host)
    removed.unlink()
    assert "segment 2 is missing" in host.flusher.flush().error
    assert not removed.exists()
    second = host.process()
    assert_answers_nothing(second)
    first.tick()
    second.tick()
    second.record("a")
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 3


def test_a_segment_that_comes_back_after_the_flush_has_given_it_up_counts_once(host: Host) -> None:
    first, second = host.process(), host.process()
    append(first.buffer, "a")
    current(host).unlink()
    other = host.process()
    assert "missing" in host.flusher.flush().error
    settle(host)
    other.tick()
    append(other.buffer, "a")
    assert host.flusher.flush().error == ""
    host.tick()
    host.tick()
    host.flusher.flush()
    host.tick()
    assert host.stored("a") == 2
    assert counted(host, first, second, other) == [0, 0, 0, 0]


def test_the_flush_does_not_send_a_fenced_segment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr("visit_counter.journal.segments.write_durably", fail)
        counter.tick()
    assert "written anew" in host.flusher.flush().error
    assert host.stored("a") == 0
    host.tick()
    assert "written anew" in host.flusher.flush().error  # another process may know more
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 1


def test_a_sync_that_failed_in_one_flush_is_not_believed_by_the_next_one_of_another_process(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        assert "cannot be sealed" in host.flusher.flush().error
    host.flusher.journal = Journal(host.journal.path, host.clock)
    assert "written anew" in host.flusher.flush().error
    counter.tick()
    settle(host)
    assert host.flusher.flush().error == ""
    assert host.stored("a") == 1
    assert not (host.journal.path / "doubtful").exists()


def test_after_a_failed_append_no_visit_is_needed_to_become_healthy_again(host: Host) -> None:
    counter = host.process()
    append(counter.buffer, "a")
    with file_size_limit(current(host).stat().st_size):
        with pytest.raises(JournalError):
            append(counter.buffer, "a")
        counter.tick()
        assert counter.buffer.refusal()
    counter.tick()
    assert counter.buffer.refusal() is None
    assert counted(host, counter) == [1, 1]


def test_a_segment_that_a_flush_writes_shorter_is_not_taken_for_removed(host: Host) -> None:
    rested = host.process()
    for _ in range(30):
        append(rested.buffer, "a")
    host.flusher.flush()
    with host.journal.flush_lock(wait=False):  # another flush is under way, so that nothing could be mended
        assert rested.buffer.mending.inspect()
        assert rested.buffer.halted == ""
        assert visited(rested) == 31
    assert damage(host) == ""
