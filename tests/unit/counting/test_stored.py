"""What one process of a host knows of stored counts, all its processes know."""

from __future__ import annotations

import gc
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.host import NAMES, Host
from tests.unit.counting.test_counter import Watched
from visit_counter.counting.stored import Loaded
from visit_counter.errors import CountUnknownError
from visit_counter.journal.records import Known, Replay, read_line, visit_line
from visit_counter.journal.segments import Segment
from visit_counter.model.answers import Accepted, Answer, Ask
from visit_counter.model.visits import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def shard() -> Watched:
    return Watched(NAMES[0])


@pytest.fixture
def host(tmp_path: Path, shard: Watched) -> Iterator[Host]:
    host = Host(tmp_path / "here", [shard], retain_segments=3)
    yield host
    host.close()


@pytest.fixture
def other(tmp_path: Path, shard: Watched) -> Iterator[Host]:
    """Another host with the same shard."""
    host = Host(tmp_path / "there", [shard], retain_segments=0)
    yield host
    host.close()


def visit(host: Host, page: str, times: int) -> None:
    """Let a host count visits and flush them."""
    counter = host.counters[0] if host.counters else host.process()
    counter.record(page, times)
    host.flusher.flush()
    host.tick()


def test_a_reader_of_two_workers_sees_no_count_go_down_while_another_host_counts(host: Host, other: Host) -> None:
    first, second = host.process(), host.process()
    assert first.count("a").visits == 0
    host.clock.now += 3
    # Read anew, not heard of: what is heard of is read again at the first request.
    assert second.count("a").visits == 0
    visit(other, "a", 10)
    host.clock.now += 3
    assert first.count("a") == Answer(10, NAMES[0])
    assert second.answer([Ask(False, "a"), Ask(True, "a")]) == [Answer(11, "in_memory"), Answer(11, NAMES[0])]


def test_what_one_worker_has_read_is_told_again_after_the_segment_that_told_it_was_cut(host: Host, other: Host) -> None:
    first, second = host.process(), host.process()
    assert second.count("a").visits == 0
    host.clock.now += 3
    assert first.count("a").visits == second.count("a").visits == 0
    visit(other, "a", 10)
    host.clock.now += 3
    second.count("b")
    second.count("a")  # the time of what it knows of the page begins anew
    first.stored.kept.expire()
    visit(other, "a", 5)
    assert first.count("a").visits == 15
    os.truncate(host.journal.path / host.journal.segments()[-1].name, 0)
    first.tick()
    second.tick()
    assert second.answer([Ask(False, "a")]) == [Answer(15, "in_memory")]


def test_with_a_shard_down_every_worker_answers_what_any_has_read_or_counted(
    host: Host, other: Host, shard: Watched
) -> None:
    first, second = host.process(), host.process()
    visit(other, "read", 7)
    assert first.count("read").visits == 7
    first.record("counted", 5)
    shard.down, shard.down_for = True, ["read", "counted", "never"]
    asks = [Ask(False, "read"), Ask(True, "counted"), Ask(False, "counted")]
    assert second.answer(asks, wait=True) == [Answer(7, "in_memory"), Answer(6, NAMES[0]), Answer(6, "in_memory")]
    assert second.record("never") == Accepted(1, NAMES[0])
    with pytest.raises(CountUnknownError):
        second.count("never")


def test_a_restart_while_a_shard_is_down_answers_for_the_pages_of_the_retained_segments(
    host: Host, other: Host, shard: Watched
) -> None:
    visit(other, "popular", 100)
    for times in range(1, 6):
        visit(host, "popular", 1)
        visit(host, f"page/{times}", times)
    host.counters[0].record("popular")
    shard.down, shard.down_for = True, ["popular", "page/1", "page/5"]
    late = host.process()
    assert late.record("popular") == Answer(107, NAMES[0])
    assert late.count("page/5").visits == 5
    with pytest.raises(CountUnknownError):
        late.count("page/1")  # its segment is forgotten


def test_each_segment_says_of_its_pages_what_was_stored_and_once(host: Host) -> None:
    counter, second = host.process(), host.process()
    visit(host, "a", 3)
    for _ in range(3):
        counter.record("a")
        second.record("a")
        host.tick()
    current = host.journal.read(host.journal.segments()[-1])
    assert current.visits == {"a": 6}
    assert current.known == {("a", 0, 1): 3}
    assert (host.journal.path / host.journal.segments()[-1].name).read_bytes().count(b"\tread\t") == 1


def test_a_read_that_says_less_is_not_believed_until_a_writer_tells_a_loss(
    host: Host, other: Host, shard: Watched
) -> None:
    visit(other, "a", 5)
    before = Tally(shard._counts), shard._watermarks.copy()
    reader = host.process()
    for _ in range(3):
        visit(other, "a", 1)  # nothing of it is retained
    assert reader.count("a").visits == 8
    shard._counts, shard._watermarks = before  # a replica that lacks three flushes takes the shard's place
    host.clock.now += 6
    assert reader.count("a").visits == 8
    visit(other, "another page", 1)
    host.clock.now += 6
    assert reader.count("a").visits == 5
    assert host.process().count("a").visits == 5
    visit(other, "a", 1)
    host.clock.now += 6
    assert reader.count("a").visits == 6


def test_a_shard_that_comes_back_empty_is_believed_once_its_writers_have_told_so(
    host: Host, other: Host, shard: Watched
) -> None:
    for _ in range(3):
        visit(other, "a", 1)
    reader = host.process()
    assert reader.count("a").visits == 3
    shard._counts.clear()
    shard._watermarks.clear()
    host.clock.now += 6
    assert reader.count("a").visits == 3
    visit(other, "another page", 1)
    host.clock.now += 6
    assert reader.count("a").visits == 0


def test_losses_that_could_not_be_told_are_told_by_a_later_flush(
    host: Host, other: Host, shard: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        visit(other, "a", 1)
    reader = host.process()
    reader.count("a")
    shard._counts.clear()
    shard._watermarks.clear()
    with monkeypatch.context() as patch:
        patch.setattr(shard, "raise_losses", lambda _: set())
        visit(other, "another page", 1)
        host.clock.now += 6
        assert reader.count("a").visits == 3
    visit(other, "another page", 1)
    host.clock.now += 6
    assert reader.count("a").visits == 0


def test_a_copied_journal_makes_no_count_go_down_before_the_clash_is_found(
    tmp_path: Path, host: Host, shard: Watched
) -> None:
    visit(host, "a", 4)
    [counter] = host.counters
    counter.record("a")
    shutil.copytree(host.journal.path, tmp_path / "copy" / "journal")
    copy = Host(tmp_path / "copy", [shard])
    for _ in range(4):
        counter.record("a")
    assert counter.count("a").visits == 9
    copy.process().record("b")
    copy.flusher.flush()  # seals segments of the same numbers
    host.clock.now += 6
    assert counter.count("a").visits == 9
    host.flusher.flush()
    host.tick()
    host.clock.now += 6
    assert counter.count("a").visits >= 9
    copy.close()


def test_a_read_right_after_the_flush_of_a_copied_journal_took_a_new_id_counts_nothing_twice(
    tmp_path: Path, host: Host, shard: Watched
) -> None:
    visit(host, "a", 4)
    visit(host, "b", 1)
    shutil.copytree(host.journal.path, tmp_path / "copy" / "journal")
    copy = Host(tmp_path / "copy", [shard])
    first, second = copy.process(), copy.process()
    host.counters[0].record("b")
    host.flusher.flush()
    first.record("a")
    copy.flusher.flush()  # finds the clash, and sends the visit under a new id
    copy.clock.now += 6
    assert [counter.count("a").visits for counter in (first, second)] == [5, 5]
    copy.close()


def test_what_cannot_be_told_to_the_other_workers_is_not_answered(
    host: Host, other: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = host.process()
    counter.count("a")
    monkeypatch.setattr(counter.buffer, "_max_bytes", 1)
    visit(other, "a", 2)
    visit(other, "b", 3)
    host.clock.now += 6
    assert counter.count("a").visits == 0
    with pytest.raises(CountUnknownError, match="cannot be told"):
        counter.count("b")
    monkeypatch.undo()
    host.clock.now += 6
    assert counter.count("a").visits == 2
    assert counter.count("b").visits == 3


def test_what_others_have_told_since_a_read_is_not_forgotten_with_a_small_cache(host: Host, other: Host) -> None:
    first, second = host.process(), host.process()
    loaded = Loaded({}, {})
    first.stored.load(["a"], loaded)
    visit(other, "a", 2)
    assert second.count("a").visits == 2
    with first.buffer.lock:
        first.buffer.catch_up()
        first.stored.kept.cache.clear()
        assert first.stored.loaded("a", loaded) is None
    assert first.count("a").visits == 2


def test_retained_segments_are_read_without_the_lock(host: Host, shard: Watched) -> None:
    visit(host, "a", 1)
    before = Tally(shard._counts), shard._watermarks.copy()
    visit(host, "a", 1)
    visit(host, "a", 1)
    shard._counts, shard._watermarks = before
    late = host.process()
    late.stored.kept.cache.clear()
    read = late.buffer.journal.read

    def without_lock(segment: Segment) -> Replay:
        assert not late.buffer.lock._is_owned()  # type: ignore[attr-defined]  # of RLock
        return read(segment)

    late.buffer.journal.read = without_lock  # type: ignore[method-assign]  # for this test
    assert late.count("a").visits == 3
    del late.buffer.journal.read


def test_a_line_of_a_read_survives_a_piece_before_it_and_is_one_before_a_visit() -> None:
    line, counted = read_line("a b", Known(1, 2, 3)), visit_line("a b", 4)
    for size in range(len(line)):
        replay = Replay()
        replay.add(line[:size] + line + line[:size] + counted)
        assert replay.known == {("a b", 1, 2): 3}
        assert replay.visits == {"a b": 4}
        assert replay.unreadable == 0


def test_a_worker_that_hears_of_a_read_from_before_what_it_has_dropped_reads_the_page_anew(
    host: Host, shard: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(host.journal, "_clock", lambda: now[0])
    counter = host.process()
    for _ in range(3):
        visit(host, "a", 1)
    for _ in range(5):
        now[0] += 3
        host.tick()
    before = shard.reads
    assert counter.buffer.report([("a", Known(0, 0, 1))])
    assert counter.count("a").visits == 3
    assert shard.reads == before + 1


def test_the_garbage_collector_has_no_cached_page_on_its_list(host: Host, other: Host) -> None:
    first, second = host.process(), host.process()
    visit(host, "flushed", 2)
    assert first.count("read").visits == 0
    assert second.answer([Ask(False, "read")]) == [None]  # it has heard of it
    visit(other, "read", 5)
    host.clock.now += 6
    assert second.count("read").visits == 5
    visit(host, "flushed", 3)
    host.tick()
    for _ in range(2):  # a tuple is taken off only after those in it
        gc.collect()
    entries = [entry for counter in (first, second) for entry in counter.stored.kept.cache._entries.values()]
    assert len(entries) == 4
    assert not any(gc.is_tracked(kept) for until, kept in entries)
    assert not any(map(gc.is_tracked, entries))
    tables = first.buffer.tables
    assert not any(gc.is_tracked(table.reported) for table in (tables.current, *tables.sealed))


def test_a_worker_that_has_just_started_raises_what_another_one_read_before_a_flush(host: Host, shard: Watched) -> None:
    first = host.process()
    visit(host, "a", 3)
    late = host.process()
    before, shard.down_for = shard.reads, ["a"]
    # The other worker had read a visit of another host's there, before this host's three were flushed.
    assert first.buffer.report([("a", Known(0, 0, 1))])
    assert late.count("a").visits == 4
    assert shard.reads == before
