"""The oracle of the tests: what it lets pass and what it does not."""

import pytest

from tests.support.oracle import BrokenError, Oracle


@pytest.fixture
def oracle() -> Oracle:
    """Return an oracle that knows of two acknowledged visits of page `a`, and of one that is under way."""
    made = Oracle()
    made.begin("a", 3)
    made.acknowledge("a", 2)
    return made


@pytest.mark.parametrize(("visits", "is_right"), [(1, False), (2, True), (3, True), (4, False)])
def test_an_answer_is_right_from_what_was_acknowledged_to_what_was_sent(
    oracle: Oracle, visits: int, is_right: bool
) -> None:
    oracle.judge("a", visits, oracle.lowest("a"))
    assert (not oracle.mistakes) is is_right
    if not is_right:
        with pytest.raises(BrokenError):
            oracle.saw("a", visits, oracle.lowest("a"))


def test_a_later_answer_must_not_be_lower(oracle: Oracle) -> None:
    oracle.judge("a", 3, oracle.lowest("a"))
    oracle.judge("a", 2, oracle.lowest("a"))
    assert len(oracle.mistakes) == 1


def test_a_refused_visit_must_not_be_counted(oracle: Oracle) -> None:
    oracle.refused("a", 1)
    oracle.judge("a", 3, 0)
    assert len(oracle.mistakes) == 1


@pytest.mark.parametrize(("stored", "lost_and_doubled"), [(0, (2, 0)), (2, (0, 0)), (3, (0, 0)), (5, (0, 2))])
def test_what_is_stored_is_compared_with_what_may_be(
    oracle: Oracle, stored: int, lost_and_doubled: tuple[int, int]
) -> None:
    assert oracle.compare({"a": stored}.__getitem__) == lost_and_doubled
    assert oracle.visits == 2
