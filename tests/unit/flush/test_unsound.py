"""A flush over partitions and pages in which somebody else has written: what is wrong stays their trouble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.faults.simulated_shard import Shard, ShardClient, aside
from tests.support.host import NAMES, Host
from visit_counter.journal.checkpoint import Checkpoint
from visit_counter.model.answers import Answer, Ask
from visit_counter.shards.contract import is_token
from visit_counter.shards.ring import Ring, partition_of

RING = Ring(NAMES)
PAGES = [f"page/{number}" for number in range(40)]
MINE = [page for page in PAGES if RING.shard_of(partition_of(page)) == NAMES[0]]
BAD = MINE[0]


@pytest.fixture
def shards() -> list[Shard]:
    return [Shard(Random(1), tells_disk=True) for _ in NAMES]


@pytest.fixture
def host(tmp_path: Path, shards: list[Shard]) -> Iterator[Host]:
    clients = [ShardClient(name, shard, lambda _: None) for name, shard in zip(NAMES, shards, strict=True)]
    host = Host(tmp_path, list(clients), retain_segments=3)
    host.process()
    yield host
    host.close()


def flush(host: Host, pages: Sequence[str] = PAGES) -> str:
    for page in pages:
        host.counters[0].record(page)
    error = host.flusher.flush().error
    host.tick()
    return error


def counts(shards: list[Shard], pages: Sequence[str]) -> set[int]:
    return {shards[NAMES.index(RING.shard_of(partition_of(page)))].counts[page] for page in pages}


def damage(host: Host) -> list[str]:
    return Checkpoint.load(host.journal.state_path).damage


def test_a_watermark_that_no_flush_wrote_is_told_and_no_visit_is_lost_or_doubled(
    host: Host, shards: list[Shard]
) -> None:
    assert flush(host) == ""
    key = (host.journal.writer, partition_of(BAD))
    for text in ("nonsense", "7:", "?", "99999999999999999999:x", "no flush wrote \udcff"):
        shards[0].marks[key] = text
        assert (flush(host) == "") == (text != "?")
        shards[0].marks[key] = shards[0].marks[key] if text != "?" else "7"
        assert flush(host, []) == ""
    assert is_token(shards[0].marks[key])
    assert counts(shards, PAGES) == {6}
    assert any(f"partition {key[1]} has the watermark 'nonsense'" in note for note in damage(host))


def test_a_shard_that_falls_back_to_a_strange_watermark_is_made_whole(
    host: Host, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush(host)
    key = (host.journal.writer, partition_of(BAD))
    shards[0].marks[key] = "nonsense"
    shards[0].tells_disk = True
    changes = shards[0].changes
    monkeypatch.setattr(host.store.stores[NAMES[0]], "persist", lambda _: False)  # its disk is slow
    assert flush(host) == ""
    assert shards[0].marks[key] != "nonsense"
    while shards[0].changes > changes:
        shards[0]._log.pop()()
    assert shards[0].marks[key] == "nonsense"
    assert flush(host) == ""
    assert counts(shards, PAGES) == {3}


def test_something_else_in_the_place_of_a_partition_holds_up_no_other_and_no_segment_but_its_own_visits(
    host: Host, shards: list[Shard]
) -> None:
    flush(host)
    shards[0].blocked.add(partition_of(BAD))
    for _ in range(60):
        assert "is no partition" in flush(host)
    assert len(host.journal.segments()) < 30
    assert counts(shards, [page for page in PAGES if partition_of(page) != partition_of(BAD)]) == {61}
    [note] = damage(host)
    assert f"visits:{{{partition_of(BAD)}}} is no partition" in note
    shards[0].mend()
    assert flush(host) == ""
    assert counts(shards, PAGES) == {62}
    # Again later is another finding, which nobody has acknowledged.
    shards[0].blocked.add(partition_of(BAD))
    flush(host)
    assert len(damage(host)) == 2


def test_a_shard_that_refuses_for_long_makes_the_journal_grow_with_pages_and_not_with_flushes(
    host: Host, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush(host)
    shards[0].blocked = {partition_of(page) for page in MINE}

    def marks(writer: str, partitions: Sequence[int]) -> list[str]:
        return [shards[0].marks.get((writer, at), "") for at in partitions]

    # It answers reads: what it has is seen, and what it is brought is refused.
    monkeypatch.setattr(host.store.stores[NAMES[0]], "watermarks", marks)
    for _ in range(60):
        assert "there is something else" in flush(host)
    assert Checkpoint.load(host.journal.state_path).attempted == {}
    assert len(host.journal.segments()) < 30
    shards[0].mend()
    assert flush(host) == ""
    assert counts(shards, PAGES) == {62}
    assert damage(host) == []


def test_a_page_whose_count_is_no_number_is_told_and_the_rest_is_flushed_and_forgotten(
    host: Host, shards: list[Shard]
) -> None:
    flush(host)
    shards[0].unsound.add(BAD)
    for _ in range(10):
        assert flush(host) == ""
    assert len(host.journal.segments()) <= 4
    assert counts(shards, [page for page in PAGES if page != BAD]) == {11}
    assert shards[0].counts[aside(BAD)] == 10
    [note] = damage(host)
    assert f"{NAMES[0]}: partition {partition_of(BAD)} holds no count for '{BAD}'" in note
    # Whoever knows the page goes on from what is known.
    assert host.counters[0].count(BAD).visits == 11
    # Mended and broken again is another finding.
    shards[0].mend()
    flush(host)
    shards[0].unsound.add(BAD)
    flush(host)
    assert len(damage(host)) == 2


def test_a_page_that_holds_no_count_keeps_no_other_from_being_read(host: Host, shards: list[Shard]) -> None:
    never_read = [page for page in (f"other/{n}" for n in range(20)) if host.store.shard_name(page) == NAMES[0]]
    shards[0].counts |= dict.fromkeys(never_read, 5)
    shards[0].unsound.add(never_read[1])
    outcomes = host.counters[0].answer([Ask(False, page) for page in never_read], wait=True)
    known = {page: one.visits for page, one in zip(never_read, outcomes, strict=True) if isinstance(one, Answer)}
    assert known == {page: 5 for page in never_read if page != never_read[1]}
