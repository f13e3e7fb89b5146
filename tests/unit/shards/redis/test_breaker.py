"""The breaker: one failure opens it, one request at a time finds out, and it comes back by itself."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tests.support.clock import Clock
from visit_counter.shards.redis.breaker import Breaker


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """Return a breaker that probes after 1 s, then 2, then 4, without jitter."""
    return Breaker(1.0, 4.0, clock, lambda _low, _high: 1.0)


def test_a_shard_that_answers_may_always_be_asked(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        assert breaker.allows()
        breaker.success()
    clock.now += 7
    assert (breaker.state, breaker.since) == ("closed", 7)


def test_one_failure_keeps_everybody_away_until_the_time_of_the_probe(breaker: Breaker, clock: Clock) -> None:
    breaker.failure()
    clock.now += 0.999
    assert not breaker.allows()
    assert breaker.state == "open"
    assert breaker.since == pytest.approx(0.999)


def test_one_probe_at_a_time_is_let_through(breaker: Breaker, clock: Clock) -> None:
    breaker.failure()
    clock.now += 1
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.state == "half-open"


def test_of_threads_that_ask_together_one_is_the_probe(breaker: Breaker, clock: Clock) -> None:
    barrier = Barrier(8)

    def ask(_: int) -> bool:
        barrier.wait()
        return breaker.allows()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            breaker.failure()
            clock.now += 10
            assert sum(pool.map(ask, range(8))) == 1
            breaker.success()


def test_a_probe_that_is_answered_closes_it(breaker: Breaker, clock: Clock) -> None:
    breaker.failure()
    clock.now += 1
    assert breaker.allows()
    breaker.success()
    clock.now += 3
    assert (breaker.state, breaker.since) == ("closed", 3)
    assert [breaker.allows() for _ in range(3)] == [True] * 3


def test_probes_that_fail_come_less_often_up_to_a_limit_and_start_anew_after_an_answer(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failure()
    for wait_seconds in (1, 2, 4, 4):
        clock.now += wait_seconds - 0.001
        assert not breaker.allows()
        clock.now += 0.001
        assert breaker.allows()
        breaker.failure()
    assert breaker.since == 11
    breaker.success()
    breaker.failure()
    clock.now += 1
    assert breaker.allows()


def test_failures_of_requests_sent_before_it_opened_do_not_put_the_probe_off(breaker: Breaker, clock: Clock) -> None:
    breaker.failure()
    clock.now += 0.9
    for _ in range(10):
        breaker.failure()
    clock.now += 0.1
    assert breaker.allows()


def test_a_probe_that_never_reports_is_followed_by_another(breaker: Breaker, clock: Clock) -> None:
    breaker.failure()
    clock.now += 1
    assert [breaker.allows(), breaker.allows()] == [True, False]
    clock.now += 1
    assert [breaker.allows(), breaker.allows()] == [True, False]


def test_probes_are_drawn_from_half_to_one_and_a_half_of_their_wait(clock: Clock) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    breaker = Breaker(1.0, 4.0, clock, draw)
    breaker.failure()
    clock.now += 1.49
    assert not breaker.allows()
    clock.now += 0.01
    assert breaker.allows()
    assert set(drawn) == {(0.5, 1.5)}


def test_an_outage_begins_once_and_ends_once(breaker: Breaker, clock: Clock) -> None:
    assert breaker.success() is None
    assert [breaker.failure() for _ in range(3)] == [True, False, False]
    clock.now += 3
    assert breaker.allows()
    assert breaker.failure() is False
    assert [breaker.success() for _ in range(2)] == [3.0, None]
    assert breaker.failure() is True
