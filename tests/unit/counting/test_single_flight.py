"""Single flight: many ask, one calls."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.support.servers import wait_until
from visit_counter.counting.single_flight import SingleFlight

THREADS = 16


def ask_together(flights: SingleFlight[int], answer: int | Exception) -> tuple[list[int | BaseException], int]:
    """Let THREADS threads ask while the first call is under way; return what each got, and the number of calls."""
    calls: list[int] = []
    go = Event()

    def call() -> int:
        calls.append(1)
        assert go.wait(20)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked: list[int] = []

    def ask(index: int) -> int:
        asked.append(index)
        return flights.do("home", call)

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(ask, index) for index in range(THREADS)]
        wait_until(lambda: len(asked) == THREADS, "all threads to ask")
        # The flight's own condition knows who waits: all but the one that calls.
        wait_until(lambda: len(flights._under_way["home"]._condition._waiters) == THREADS - 1, "the others to wait")  # type: ignore[attr-defined]  # internals of threading
        go.set()
        got: list[int | BaseException] = [future.exception() or future.result() for future in futures]
    return got, len(calls)


def test_many_that_ask_at_once_cost_one_call_and_all_get_its_result() -> None:
    assert ask_together(SingleFlight(), 7) == ([7] * THREADS, 1)


def test_an_error_is_everybodys_and_the_next_one_calls_again() -> None:
    flights: SingleFlight[int] = SingleFlight()
    error = RuntimeError("down")
    assert ask_together(flights, error) == ([error] * THREADS, 1)
    assert flights.do("home", lambda: 3) == 3


def test_nothing_is_remembered_once_a_call_is_over() -> None:
    flights: SingleFlight[int] = SingleFlight()
    assert [flights.do("home", lambda n=n: n) for n in range(3)] == [0, 1, 2]  # type: ignore[misc]  # mypy cannot infer it
    assert flights._under_way == {}


def test_different_keys_do_not_wait_for_each_other() -> None:
    flights: SingleFlight[int] = SingleFlight()
    assert flights.do("outer", lambda: flights.do("inner", lambda: 5)) == 5


def test_an_interrupt_of_the_call_frees_those_who_wait() -> None:
    flights: SingleFlight[int] = SingleFlight()

    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flights.do("home", interrupted)
    assert flights.do("home", lambda: 1) == 1
