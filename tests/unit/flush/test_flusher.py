"""The flush: exactly once, whatever the shards answer."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest

from tests.support.host import NAMES, Host
from visit_counter.errors import FlushBusyError, StoreUnavailableError
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.journal.segments import Segment
from visit_counter.model.visits import Tally
from visit_counter.shards.contract import Applied, Batch, Stored
from visit_counter.shards.memory import MemoryStore
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

PAGES = [f"page/{number}" for number in range(40)]


class Shard(MemoryStore):
    """A shard in memory that can be down, hang, lose its reply after the work, or be put back to older data."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.down = self.loses_replies = self.hangs = False
        self.taken: list[Batch] = []
        self.applied: list[Batch] = []

    def apply(self, writer: str, batches: Iterable[Batch]) -> list[Applied]:
        batches = list(batches)
        if self.down:
            return [Applied(batch.partition, "", f"{self.name}: down") for batch in batches]
        if self.hangs:
            self.taken += batches
            return [Applied(batch.partition, "", f"{self.name}: no reply") for batch in batches]
        self.applied += batches
        answers = super().apply(writer, batches)
        if self.loses_replies:
            return [Applied(batch.partition, "", f"{self.name}: no reply") for batch in batches]
        return answers

    def watermarks(self, writer: str, partitions: Sequence[int]) -> list[str]:
        if self.down:
            raise StoreUnavailableError(self.name, "down")
        return super().watermarks(writer, partitions)

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        if self.down:
            raise StoreUnavailableError(self.name, "down")
        return super().read(writer, pages)

    def wake_up(self, writer: str) -> None:
        """Execute what was taken while it hung."""
        super().apply(writer, self.taken)

    def save(self) -> tuple[dict[str, int], dict[tuple[str, int], str]]:
        """Return its data, to be put back later."""
        return dict(self._counts), dict(self._watermarks)

    def put_back(self, data: tuple[dict[str, int], dict[tuple[str, int], str]]) -> None:
        """Come back with older data."""
        self._counts.clear()
        self._counts.update(data[0])
        self._watermarks = dict(data[1])


@pytest.fixture
def shards() -> list[Shard]:
    return [Shard(name) for name in NAMES]


@pytest.fixture
def host(tmp_path: Path, shards: list[Shard]) -> Iterator[Host]:
    host = Host(tmp_path, list(shards), retain_segments=3)
    yield host
    host.close()


def visit_all(host: Host) -> None:
    for page in PAGES:
        host.counters[0].record(page)


def stored(host: Host) -> set[int]:
    return {host.stored(page) for page in PAGES}


def damage(host: Host) -> list[str]:
    return Checkpoint.load(host.journal.state_path).damage


def test_a_flush_brings_every_pending_visit_into_its_shard_once(host: Host, shards: list[Shard]) -> None:
    host.process()
    visit_all(host)
    result = host.flusher.flush()
    assert (result.visits, result.pages, result.error) == (40, 40, "")
    assert stored(host) == {1}
    assert all(shard.applied for shard in shards)
    assert host.flusher.flush().visits == 0
    assert stored(host) == {1}


def test_a_flush_with_nothing_pending_makes_no_segment(host: Host) -> None:
    host.process()
    host.flusher.flush()
    host.flusher.flush()
    assert len(host.journal.segments()) == 1


def test_the_count_is_right_before_during_and_after_a_flush(host: Host) -> None:
    first, second = host.process(), host.process()
    for round_ in range(1, 8):
        first.record("a")
        assert second.count("a").visits == round_
        host.flusher.flush()
        assert [first.count("a").visits, second.count("a").visits] == [round_, round_]
        host.tick()
        host.clock.now += round_ % 3 * 4
        assert [first.count("a").visits, second.count("a").visits] == [round_, round_]


def test_a_lost_reply_does_not_double(host: Host, shards: list[Shard]) -> None:
    host.process()
    visit_all(host)
    for shard in shards:
        shard.loses_replies = True
    assert host.flusher.flush().error
    assert host.counters[0].count("page/1").visits == 1
    for shard in shards:
        shard.loses_replies = False
    visit_all(host)
    assert host.flusher.flush().error == ""
    assert stored(host) == {2}


def test_a_shard_found_away_is_not_sent_to_again_by_that_flush(
    host: Host, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.process()
    visit_all(host)
    for shard in shards:
        # What it has is not on its disk: later flushes go on asking.
        monkeypatch.setattr(shard, "persist", lambda _: False)
    host.flusher.flush()
    visit_all(host)
    shards[0].down = True
    sent: list[Batch] = []

    def keep(_: str, batches: Iterable[Batch]) -> list[Applied]:
        sent.extend(batches)
        return []

    monkeypatch.setattr(shards[0], "apply", keep)
    assert "down" in host.flusher.flush().error
    assert sent == []
    here = [page for page in PAGES if host.store.shard_name(page) == NAMES[1]]
    assert {host.stored(page) for page in here} == {2}


def test_a_shard_is_asked_about_its_disk_once_something_was_written_to_it_in_the_same_flush(
    host: Host, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.process()
    visit_all(host)
    for shard in shards:
        monkeypatch.setattr(shard, "persist", lambda _: False)
    host.flusher.flush()
    assert Checkpoint.load(host.journal.state_path).unpersisted
    written: list[bool] = []

    def vouch(shard: Shard) -> bool:
        written.append(bool(shard.applied))
        return True

    for shard in shards:
        shard.applied.clear()
        monkeypatch.setattr(shard, "persist", lambda _, shard=shard: vouch(shard))
    host.flusher.flush()
    assert written == [True, True]
    assert not Checkpoint.load(host.journal.state_path).unpersisted


def test_a_shard_that_is_down_keeps_its_visits_pending_and_the_other_gets_its_own(
    host: Host, shards: list[Shard]
) -> None:
    counter = host.process()
    visit_all(host)
    shards[0].down = True
    assert "down" in host.flusher.flush().error
    here = [page for page in PAGES if host.store.shard_name(page) == NAMES[1]]
    assert {host.stored(page) for page in here} == {1}
    assert {counter.count(page).visits for page in PAGES} == {1}
    shards[0].down = False
    assert host.flusher.flush().error == ""
    assert stored(host) == {1}


def test_a_shard_that_comes_back_with_older_data_is_made_whole(host: Host, shards: list[Shard]) -> None:
    counter = host.process()
    visit_all(host)
    host.flusher.flush()
    older = [shard.save() for shard in shards]
    for _ in range(2):
        visit_all(host)
        host.flusher.flush()
    host.tick()
    for shard, data in zip(shards, older, strict=True):
        shard.put_back(data)
    host.clock.now += 10
    # Readers see no count go down meanwhile, whether they knew the page or not.
    assert {counter.count(page).visits for page in PAGES} == {3}
    assert {host.process().count(page).visits for page in PAGES[:3]} == {3}
    host.flusher.flush()
    assert stored(host) == {3}
    assert damage(host) == []


def test_a_partition_seldom_visited_is_made_whole_from_what_is_retained(tmp_path: Path, shards: list[Shard]) -> None:
    """What is forgotten by then was never for that partition."""
    host = Host(tmp_path, list(shards), retain_segments=1)
    counter = host.process()
    counter.record("seldom")
    host.flusher.flush()
    for _ in range(5):
        counter.record("often")
        host.flusher.flush()
    older = [shard.save() for shard in shards]
    counter.record("seldom")
    counter.record("new")
    host.flusher.flush()
    for shard, data in zip(shards, older, strict=True):
        shard.put_back(data)
    host.flusher.flush()
    assert [host.stored(page) for page in ("seldom", "often", "new")] == [2, 5, 1]
    assert damage(host) == []
    host.close()


def test_a_shard_that_lost_more_than_is_retained_is_told_once_and_counting_goes_on(
    host: Host, shards: list[Shard]
) -> None:
    host.process()
    for _ in range(6):
        visit_all(host)
        host.flusher.flush()
    shards[0].put_back(({}, {}))
    visit_all(host)
    host.flusher.flush()
    assert [note for note in damage(host) if "visits are lost" in note and NAMES[0] in note]
    told = len(damage(host))
    assert told == 1
    lost = [page for page in PAGES if host.store.shard_name(page) == NAMES[0]]
    # The retained segments (three) and the new visit are there.
    assert {host.stored(page) for page in lost} == {4}
    visit_all(host)
    host.flusher.flush()
    assert {host.stored(page) for page in lost} == {5}
    # Nobody goes on telling what was known before.
    host.tick()
    assert {host.counters[0].count(page).visits for page in lost} == {5}
    assert len(damage(host)) == told


def test_segments_are_retained_and_then_forgotten(host: Host) -> None:
    host.process()
    for _ in range(6):
        host.counters[0].record("a")
        host.flusher.flush()
    assert [segment.last for segment in host.journal.segments()] == [4, 5, 6, 7]


def test_two_hosts_share_the_shards_without_knowing_of_each_other(tmp_path: Path, shards: list[Shard]) -> None:
    hosts = [Host(tmp_path / name, list(shards)) for name in ("one", "two")]
    for host in hosts:
        host.process()
        for _ in range(3):
            host.counters[0].record("a", 5)
            host.flusher.flush()
    assert hosts[0].stored("a") == 30
    for host in hosts:
        host.clock.now += 10
        assert host.counters[0].count("a").visits == 30
        host.close()


def test_a_copied_data_directory_is_found_out_and_no_acknowledged_visit_is_lost(
    tmp_path: Path, shards: list[Shard]
) -> None:
    original = Host(tmp_path / "one", list(shards))
    original.process().record("a")
    original.flusher.flush()
    copy = Host(tmp_path / "two", list(shards))
    copy.journal.path.mkdir(parents=True)
    for file in original.journal.path.iterdir():
        (copy.journal.path / file.name).write_bytes(file.read_bytes())
    copy.process()
    for _ in range(3):
        for host in (original, copy):
            host.counters[0].record("a")
            host.flusher.flush()
            host.tick()
    assert original.stored("a") == 7
    assert any("another journal uses this writer's id" in note for note in damage(copy) + damage(original))
    assert original.journal.writer != copy.journal.writer
    for host in (original, copy):
        host.clock.now += 10
        assert host.counters[0].count("a").visits == 7
        host.close()


def test_only_one_process_flushes_at_a_time(host: Host) -> None:
    host.process().record("a")
    with (host.journal.path / "flush.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FlushBusyError):
            host.flusher.flush(wait=False)
    assert host.flusher.flush(wait=False).visits == 1


def test_without_its_state_the_flush_asks_the_shards_and_doubles_nothing(host: Host) -> None:
    host.process()
    for _ in range(3):
        visit_all(host)
        host.flusher.flush()
    host.journal.state_path.write_bytes(b"{")
    visit_all(host)
    host.flusher.flush()
    assert stored(host) == {4}
    assert any("state.json" in note for note in damage(host))
    late = host.process()
    assert {late.count(page).visits for page in PAGES} == {4}


def test_a_segment_of_many_lines_is_rewritten_with_a_line_a_page(host: Host) -> None:
    counter = host.process()
    for _ in range(500):
        counter.record("a")
    host.flusher.flush()
    first = host.journal.segments()[0]
    assert host.journal.read(first).visits == {"a": 500}
    # Two lines: the visits, and what the page's stored count was.
    assert host.journal.read(first).lines == 3


def test_while_a_shard_is_down_segments_merge_and_nothing_is_lost_or_doubled(host: Host, shards: list[Shard]) -> None:
    counter, other = host.process(), host.process()
    visit_all(host)
    host.flusher.flush()
    shards[0].down = True
    for round_ in range(2, 42):
        visit_all(host)
        host.flusher.flush()
        host.tick()
        host.clock.now += 3
        if round_ % 7 == 0:
            here = [page for page in PAGES if host.store.shard_name(page) == NAMES[1]]
            assert {other.count(page).visits for page in here} == {round_}
            assert {counter.count(page).visits for page in PAGES} == {round_}
    assert len(host.journal.segments()) < 20
    late = host.process()
    shards[0].down = False
    assert {late.count(page).visits for page in PAGES} == {41}
    host.flusher.flush()
    assert stored(host) == {41}
    host.tick()
    host.clock.now += 10
    assert {process.count(page).visits for process in (counter, other, late) for page in PAGES} == {41}
    assert damage(host) == []


def test_a_batch_executed_long_after_it_was_sent_does_no_harm_to_merged_segments(
    host: Host, shards: list[Shard]
) -> None:
    host.process()
    visit_all(host)
    host.flusher.flush()
    visit_all(host)
    shards[0].hangs = True
    host.flusher.flush()
    shards[0].hangs, shards[0].down = False, True
    for _ in range(30):
        visit_all(host)
        host.flusher.flush()
        host.tick()
    shards[0].down = False
    shards[0].wake_up(host.journal.writer)
    host.flusher.flush()
    assert stored(host) == {32}


def test_partitions_without_visits_get_no_watermark(host: Host) -> None:
    host.process().record("a")
    host.flusher.flush()
    watermarks = host.store.watermarks(host.journal.writer, [partition_of("a"), (partition_of("a") + 1) % 4096])
    assert watermarks[0].startswith("1:")
    assert watermarks[1] == ""


def test_parts_that_a_killed_merge_left_behind_are_removed_and_not_counted(host: Host) -> None:
    host.process()
    for _ in range(3):
        visit_all(host)
        host.journal.seal(host.journal.segments()[-1])
    visits = dict.fromkeys(PAGES, 2)
    first, second, *_ = host.journal.segments()
    host.journal.write_segment(Segment(1, 2), Tally(visits), host.journal.token_of(second), {})
    assert (host.journal.path / first.name).exists()
    host.flusher.flush()
    assert not (host.journal.path / first.name).exists()
    assert stored(host) == {3}


def test_a_loss_of_visits_that_a_merge_left_out_is_told(host: Host, shards: list[Shard]) -> None:
    host.process()
    visit_all(host)
    host.flusher.flush()
    older = shards[1].save()
    shards[0].down = True
    for _ in range(20):
        visit_all(host)
        host.flusher.flush()
    shards[1].put_back(older)
    host.flusher.flush()
    assert any(NAMES[1] in note and "visits are lost" in note for note in damage(host))


def test_a_process_that_is_told_of_several_merges_at_once_counts_what_each_left_out(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visit_counter.flush.compaction.COMPACT_FROM", 2)
    host = Host(tmp_path, list(shards), retain_segments=0)
    rested, busy = host.process(), host.process()
    for page in PAGES:
        assert rested.count(page).visits == 0
    for page in PAGES:
        busy.record(page)
    shards[1].down = True

    def flush() -> None:
        host.flusher.flush()
        with rested.buffer.lock:
            rested.buffer.catch_up()  # as a request does; what it is told waits for the tick

    flush()  # the first shard includes segment 1, which waits for the second
    shards[0].down = True
    second = [page for page in PAGES if host.store.shard_name(page) == NAMES[1]]
    # Segments 1 and 2 become one file without what the first shard includes, and then one with segment 3.
    for pages in (second, PAGES):
        for page in pages:
            busy.record(page)
        flush()
    assert host.journal.segments()[0].name == "0000000001-0000000003.log"
    host.clock.now += 10
    rested.tick()
    assert {page: rested.count(page).visits for page in PAGES} == {page: 3 if page in second else 2 for page in PAGES}
    host.close()
