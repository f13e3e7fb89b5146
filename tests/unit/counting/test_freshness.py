"""What was read stays fresh without another read exactly as long as nobody else has changed its partition."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.host import NAMES, Host
from tests.unit.counting.test_counter import Watched
from tests.unit.counting.test_stored import visit
from visit_counter.counting import stored as stored_module
from visit_counter.model.answers import Answer, Ask
from visit_counter.shards.contract import Look
from visit_counter.shards.ring import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from visit_counter.counting.counter import BufferedCounter


class Seen(Watched):
    """A shard that counts the partitions that were looked at."""

    looked = 0
    silent = False

    def look(self, writer: str, partitions: Sequence[int]) -> list[Look | None]:
        self.looked += len(partitions)
        return [None] * len(partitions) if self.silent else super().look(writer, partitions)


@pytest.fixture
def shard() -> Seen:
    return Seen(NAMES[0])


@pytest.fixture
def host(tmp_path: Path, shard: Seen) -> Iterator[Host]:
    host = Host(tmp_path / "here", [shard], retain_segments=3)
    yield host
    host.close()


@pytest.fixture
def other(tmp_path: Path, shard: Seen) -> Iterator[Host]:
    """Another host with the same shard."""
    host = Host(tmp_path / "there", [shard])
    yield host
    host.close()


def pass_time(host: Host, seconds: float) -> None:
    """Let time pass, with a look each second."""
    for _ in range(round(seconds)):
        host.clock.now += 1
        for counter in host.counters:
            counter.stored.look()


def at_once(counter: BufferedCounter, page: str = "a") -> int | None:
    """Return the count that needs no shard, or None."""
    [answer] = counter.answer([Ask(False, page)])
    assert answer is None or (isinstance(answer, Answer) and answer.served_via == "in_memory")
    return answer.visits if answer else None


def test_a_page_is_read_once_while_only_this_host_counts_it(host: Host, shard: Seen) -> None:
    counter = host.process()
    assert counter.record("a") == Answer(1, NAMES[0])
    for number in range(1, 8):
        pass_time(host, 10)
        host.flusher.flush()
        host.tick()
        assert at_once(counter) == number
        assert counter.record("a").visits == number + 1  # type: ignore[union-attr]  # it is there
    assert shard.reads == 1


@pytest.mark.parametrize("looks", [True, False])
def test_a_page_that_another_host_counts_is_read_again_within_the_cache_time(
    host: Host, other: Host, looks: bool
) -> None:
    counter = host.process()
    counter.count("a")
    pass_time(host, 20)
    assert at_once(counter) == 0
    visit(other, "a", 7)
    if looks:
        pass_time(host, 5)
    else:
        host.clock.now += 5
    assert at_once(counter) is None
    assert counter.count("a") == Answer(7, NAMES[0])


def test_each_of_two_hosts_that_count_one_page_sees_what_the_other_has_counted(host: Host, other: Host) -> None:
    here, there = host.process(), other.process()
    total = 0
    for number in range(1, 6):
        visit(host, "a", number)
        visit(other, "a", number)
        visit(host, "a", 1)
        total += 2 * number + 1
        for side, counter in ((host, here), (other, there)):
            pass_time(side, 5)
            assert counter.count("a").visits == total


def test_a_visit_of_another_host_to_another_page_of_the_partition_lets_the_page_be_read(
    host: Host, other: Host, shard: Seen
) -> None:
    twin = next(page for page in map(str, range(100_000)) if partition_of(page) == partition_of("a"))
    counter = host.process()
    counter.count("a")
    counter.count("far away")
    visit(other, twin, 1)
    pass_time(host, 5)
    assert (at_once(counter), at_once(counter, "far away")) == (None, 0)
    before = shard.reads
    # One read is a look, too.
    counter.count("a")
    counter.count(twin)
    pass_time(host, 20)
    assert (at_once(counter), at_once(counter, twin)) == (0, 1)
    assert shard.reads == before + 2


def test_a_look_that_gets_no_answer_makes_nothing_fresh(host: Host, shard: Seen) -> None:
    counter = host.process()
    counter.count("a")
    shard.silent = True
    pass_time(host, 5)
    assert at_once(counter) is None
    shard.silent = False
    pass_time(host, 1)
    assert at_once(counter) == 0


def test_a_partition_that_nobody_asks_for_is_looked_at_for_a_minute_and_its_pages_are_read_when_asked_for(
    host: Host, shard: Seen
) -> None:
    counter = host.process()
    counter.count("a")
    pass_time(host, 70)
    before = shard.looked
    pass_time(host, 70)
    assert shard.looked == before
    assert at_once(counter) is None


def test_what_leaves_no_stamp_is_noticed_in_the_end(host: Host, shard: Seen) -> None:
    counter = host.process()
    counter.count("a")
    shard.add("a", 5)
    seen = set()
    for _ in range(70):
        pass_time(host, 10)
        seen.add(counter.count("a").visits)
    assert seen == {0, 5}


def test_a_told_loss_lets_every_page_of_the_partition_be_read(host: Host, shard: Seen) -> None:
    visit(host, "a", 3)
    counter = host.counters[0]
    counter.count("a")
    shard.raise_losses({partition_of("a"): 1})
    pass_time(host, 5)
    assert at_once(counter) is None


def test_a_shard_that_came_back_without_our_last_flush_is_read_and_not_believed(host: Host, shard: Seen) -> None:
    counter = host.process()
    visit(host, "a", 3)
    assert counter.count("a").visits == 3
    before = shard._counts.copy(), shard._watermarks.copy(), shard._stamps.copy()
    visit(host, "a", 4)
    for _ in range(6):
        host.tick()  # the tables are dropped, so that nothing but the state knows the token
    pass_time(host, 5)
    assert counter.count("a").visits == 7
    shard._counts, shard._watermarks, shard._stamps = type(shard._counts)(before[0]), *before[1:]
    pass_time(host, 5)
    assert at_once(counter) is None
    assert counter.count("a").visits == 7


def test_what_a_copy_of_this_journal_has_changed_is_not_taken_for_our_own(
    tmp_path: Path, host: Host, shard: Seen
) -> None:
    visit(host, "a", 4)
    [counter] = host.counters
    counter.count("a")
    shutil.copytree(host.journal.path, tmp_path / "copy" / "journal")
    copy = Host(tmp_path / "copy", [shard])
    copy.process().record("a")
    copy.flusher.flush()
    pass_time(host, 5)
    assert at_once(counter) is None
    copy.close()


def test_a_read_that_is_older_than_what_others_changed_since_makes_nothing_fresh(
    host: Host, other: Host, shard: Seen
) -> None:
    counter = host.process()
    counter.count("a")
    shard.after = lambda: visit(other, "a", 7)
    host.clock.now += 6
    counter.count("a")  # is answered before, and taken over after the other host's flush
    pass_time(host, 5)
    assert counter.count("a").visits == 7


def test_partitions_are_looked_at_some_at_a_time(host: Host, shard: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_LOOK_PARTITIONS", 3)
    counter = host.process()
    pages = [f"page/{number}" for number in range(20)]
    counter.answer([Ask(False, page) for page in pages], wait=True)
    before = shard.reads
    pass_time(host, 20)
    assert {at_once(counter, page) for page in pages} == {0}
    assert shard.reads == before
