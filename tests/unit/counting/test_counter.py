"""The counter of the journaled profiles: count = stored + pending."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.host import NAMES, Host
from tests.unit.flush.test_flusher import Shard
from tests.unit.journal.test_buffer import file_size_limit
from visit_counter.counting.cache import LocalCache
from visit_counter.counting.counter import BufferedCounter
from visit_counter.counting.freshness import NO_NUMBER
from visit_counter.errors import CountUnknownError, JournalError, UncertainError
from visit_counter.journal.buffer import WriteBuffer
from visit_counter.journal.records import Known
from visit_counter.model.answers import Accepted, Answer, Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from visit_counter.shards.contract import Stored


class Watched(Shard):
    """A shard that counts its reads, lets a test act while one is under way, and can be known to be down."""

    reads = 0
    down_for: Sequence[str] = ()
    during: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def is_down(self, page: str) -> bool:
        return page in self.down_for

    def read(self, writer: str, pages: Sequence[str]) -> list[Stored]:
        self.reads += 1
        act, self.during = self.during, None
        if act:
            act()
        found = super().read(writer, pages)
        act, self.after = self.after, None
        if act:
            act()
        return found


def count_of(answer: Answer | Accepted) -> int:
    assert isinstance(answer, Answer)
    return answer.visits


@pytest.fixture
def shard() -> Watched:
    return Watched(NAMES[0])


@pytest.fixture
def host(tmp_path: Path, shard: Watched) -> Iterator[Host]:
    host = Host(tmp_path, [shard])
    yield host
    host.close()


@pytest.fixture
def counter(host: Host) -> BufferedCounter:
    return host.process()


def test_answers_name_the_shard_or_the_cache(host: Host, counter: BufferedCounter) -> None:
    assert counter.count("a") == Answer(0, "redis_7070")
    assert counter.record("a") == Answer(1, "redis_7070")
    assert counter.count("a") == Answer(1, "in_memory")
    host.clock.now += 5.0
    assert counter.count("a") == Answer(1, "redis_7070")


def test_the_cache_time_is_exact(host: Host, shard: Watched, counter: BufferedCounter) -> None:
    counter.count("a")
    host.clock.now += 4.999
    counter.count("a")
    assert shard.reads == 1
    host.clock.now += 0.001
    counter.count("a")
    assert shard.reads == 2


def test_with_batches_an_uncached_answer_says_whether_any_of_it_is_pending(host: Host) -> None:
    plain = host.process()
    counter = BufferedCounter(
        plain.buffer,
        host.store,
        plain.stored.kept.cache,
        post_via=lambda _: "batch",
        stored_via=lambda _: "redis",
        pending_via="batch",
    )
    assert counter.record("a") == Answer(1, "batch")
    host.clock.now += 6
    assert counter.count("a") == Answer(1, "batch")
    host.flusher.flush()
    host.tick()
    host.clock.now += 6
    assert counter.count("a") == Answer(1, "redis")
    assert counter.count("a") == Answer(1, "in_memory")


def test_many_readers_of_one_expired_page_cause_one_read(shard: Watched, counter: BufferedCounter) -> None:
    arrived = threading.Barrier(9)
    gate = threading.Event()
    shard.during = gate.wait  # type: ignore[assignment]  # what it returns is of no account
    answers: list[Answer] = []

    def read() -> None:
        arrived.wait()
        answers.append(counter.count("a"))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    arrived.wait()
    gate.set()
    for thread in threads:
        thread.join()
    assert shard.reads == 1
    assert {answer.visits for answer in answers} == {0}


def test_a_page_known_before_its_shard_went_down_is_counted_and_read_on(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    counter.record("a")
    host.flusher.flush()
    host.tick()
    host.clock.now += 100
    shard.down = True
    assert counter.record("a") == Answer(2, "redis_7070")
    assert counter.count("a").visits == 2


def test_a_shard_that_is_down_is_asked_for_a_page_once_a_second_at_most(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    counter.count("a")
    host.clock.now += 6
    shard.down = True
    before = shard.reads
    assert [counter.count("a").visits for _ in range(5)] == [0] * 5
    assert shard.reads == before + 1
    assert counter.answer([Ask(True, "a")]) == [Answer(1, "redis_7070")]
    host.clock.now += 1
    shard.down = False
    assert counter.count("a") == Answer(1, "redis_7070")


def test_a_shard_known_to_be_down_is_not_asked_for_a_known_page_and_nobody_waits_for_it(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    counter.record("a")
    host.clock.now += 6
    shard.down, shard.down_for = True, ["a", "b"]
    before = shard.reads
    asked = [Ask(True, "a"), Ask(False, "a"), Ask(True, "b"), Ask(False, "b")]
    assert counter.answer(asked) == [Answer(2, "redis_7070"), Answer(2, "in_memory"), None, None]
    host.clock.now += 6
    assert counter.record("a") == Answer(3, "redis_7070")
    host.clock.now += 6
    assert counter.count("a") == Answer(3, "in_memory")
    host.clock.now += 6
    counter.answer([Ask(False, "a")], wait=True)
    assert shard.reads == before
    host.clock.now += 1
    shard.down, shard.down_for = False, ()
    assert counter.count("a") == Answer(3, "redis_7070")


def test_a_page_asked_for_while_its_shard_is_down_makes_no_room_for_others(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    counter.stored.kept.cache = LocalCache(threshold=2, ttl_seconds=5.0, clock=host.clock)
    counter.record("a")
    host.clock.now += 6
    counter.count("b")
    shard.down_for = ["a"]
    assert counter.answer([Ask(False, "a")]) == [Answer(1, "in_memory")]
    counter.count("c")
    assert counter.answer([Ask(False, "a"), Ask(False, "b")]) == [Answer(1, "in_memory"), None]


def test_pages_are_loaded_with_one_call_for_each_shard_and_a_shard_that_is_down_spares_the_others(
    tmp_path: Path,
) -> None:
    shards = [Watched(name) for name in NAMES]
    shards[0].down = True
    host = Host(tmp_path, [*shards])
    counter = host.process()
    asks = [Ask(number % 2 == 0, f"page/{number}") for number in range(20)]
    outcomes = counter.answer(asks, wait=True)
    assert [shard.reads for shard in shards] == [1, 1]
    for ask, outcome in zip(asks, outcomes, strict=True):
        if counter.owner(ask.page) == shards[1].name:
            assert outcome == Answer(int(ask.is_visit), shards[1].name)
        elif ask.is_visit:
            assert outcome == Accepted(1, shards[0].name)
        else:
            assert isinstance(outcome, CountUnknownError)
    host.close()


def test_an_unknown_page_of_a_shard_that_is_down_is_accepted_but_not_guessed(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    host.store.add("b", 5)
    shard.down = True
    assert counter.record("b") == Accepted(1, "redis_7070")
    with pytest.raises(CountUnknownError, match="down"):
        counter.count("b")
    shard.down = False
    assert counter.count("b").visits == 6


def test_a_read_that_a_flush_overtakes_is_right(host: Host, shard: Watched, counter: BufferedCounter) -> None:
    def flush_all() -> None:
        host.flusher.flush()
        host.tick()

    counter.record("a")
    for moment in ("during", "after"):
        host.clock.now += 10
        setattr(shard, moment, flush_all)
        before = host.process().count("a").visits
        assert counter.count("a").visits == before
        counter.record("a")
        assert counter.count("a").visits == before + 1


def test_a_read_from_before_a_flush_never_replaces_a_newer_one(host: Host, counter: BufferedCounter) -> None:
    counter.record("a")
    host.flusher.flush()
    host.tick()
    counter.count("a")
    counter.stored.kept.keep("a", Known(0, 9, 7), NO_NUMBER)
    host.clock.now += 10
    assert counter.count("a").visits == 7


def test_a_run_is_one_append_and_every_visit_is_told_its_own_number(
    host: Host, counter: BufferedCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.count("a")
    counter.count("b")
    size = (host.journal.path / "0000000001.log").stat().st_size
    writes: list[bytes] = []
    write = os.write

    def watched_write(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return write(descriptor, data)

    monkeypatch.setattr("os.write", watched_write)
    answers = counter.answer(
        [Ask(True, "a"), Ask(True, "b"), Ask(False, "a"), Ask(True, "a"), Ask(True, "unknown"), Ask(False, "x")]
    )
    assert answers == [
        Answer(1, "redis_7070"),
        Answer(1, "redis_7070"),
        Answer(2, "in_memory"),
        Answer(2, "redis_7070"),
        None,
        None,
    ]
    assert len(writes) == 1
    assert (host.journal.path / "0000000001.log").stat().st_size > size
    assert counter.count("unknown").visits == 0


def test_a_page_that_was_read_for_a_request_is_good_for_it_however_short_the_cache_time(
    host: Host, shard: Watched, counter: BufferedCounter
) -> None:
    counter.record("a")
    host.clock.now += 6
    asked = [Ask(False, "a"), Ask(True, "a")]
    assert counter.answer(asked) == [None, None]

    def much_later() -> None:
        host.clock.now += 6

    shard.after = much_later
    assert counter.answer(asked, wait=True) == [Answer(2, "redis_7070"), Answer(2, "redis_7070")]


def test_a_cache_for_one_page_answers_any_number_of_them(host: Host, counter: BufferedCounter) -> None:
    counter.stored.kept.cache = LocalCache(threshold=1, ttl_seconds=5.0, clock=host.clock)
    asks = [Ask(number % 2 == 0, f"page/{number}") for number in range(20)]
    for times in (1, 2):
        assert [outcome.visits for outcome in counter.answer(asks, wait=True) if isinstance(outcome, Answer)] == [
            times * ask.is_visit for ask in asks
        ]


def test_a_visit_of_which_nobody_can_say_whether_it_is_in_the_journal_is_asked_of_it_once(
    counter: BufferedCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def append(_buffer: object, run: object) -> list[int]:
        tried.append(run)
        if len(tried) == 1:
            raise UncertainError("nobody knows")
        return [1, 2, 3]

    monkeypatch.setattr(WriteBuffer, "append", append)
    asks = [Ask(True, "a"), Ask(True, "a"), Ask(False, "a"), Ask(True, "b")]
    first, second, read, third = counter.answer(asks, wait=True)
    assert [type(each) for each in (first, second, third)] == [UncertainError] * 3
    assert read == Answer(0, "redis_7070")
    assert tried == [[("a", 1), ("a", 1), ("b", 1)]]


def test_a_run_that_cannot_be_journaled_counts_nothing_and_reads_go_on(host: Host, counter: BufferedCounter) -> None:
    counter.record("a")
    with file_size_limit((host.journal.path / "0000000001.log").stat().st_size):
        refused, read = counter.answer([Ask(True, "a"), Ask(False, "a")])
        assert isinstance(refused, JournalError)
        assert read == Answer(1, "in_memory")
        with pytest.raises(JournalError):
            counter.record("a")
        assert counter.count("a").visits == 1
    assert counter.record("a") == Answer(2, "redis_7070")


def test_a_run_looks_at_what_other_workers_acknowledged(host: Host, counter: BufferedCounter) -> None:
    other = host.process()
    counter.count("a")
    other.record("a", 3)
    assert counter.answer([Ask(False, "a")]) == [Answer(3, "in_memory")]
    host.flusher.flush()
    assert counter.answer([Ask(True, "a"), Ask(False, "a")]) == [Answer(4, "redis_7070"), Answer(4, "in_memory")]


def test_a_cached_count_stays_right_when_its_pending_visits_are_dropped(host: Host, counter: BufferedCounter) -> None:
    counter.record("a", 3)
    host.flusher.flush()
    host.tick()
    with counter.buffer.lock:
        assert counter.buffer.tables.pending("a", 0) == 0
    assert counter.count("a") == Answer(3, "in_memory")


def test_concurrent_visits_and_reads_of_two_workers_with_flushes_add_up(host: Host) -> None:
    workers = [host.process(), host.process()]
    stop = threading.Event()
    told: list[int] = []
    low: list[tuple[int, int]] = []

    def visit(worker: BufferedCounter) -> None:
        told.extend(count_of(worker.record("a")) for _ in range(200))

    def watch(worker: BufferedCounter) -> None:
        last = 0
        while not stop.is_set():
            now = worker.count("a").visits
            if now < last:
                low.append((last, now))
            last = now

    def flush() -> None:
        while not stop.is_set():
            host.flusher.flush()
            host.tick()
            host.clock.now += 2

    visitors = [threading.Thread(target=visit, args=(worker,)) for worker in workers * 2]
    others = [threading.Thread(target=watch, args=(worker,)) for worker in workers] + [threading.Thread(target=flush)]
    for thread in visitors + others:
        thread.start()
    for thread in visitors:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert sorted(told) == list(range(1, 801))
    assert low == []
    host.flusher.flush()
    assert host.stored("a") == 800
