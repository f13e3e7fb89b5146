"""The tables of pending visits: what a count that another process tells of becomes here."""

from __future__ import annotations

import pytest

from visit_counter.journal.pending import Table, Tables
from visit_counter.journal.records import Known
from visit_counter.model.visits import Tally


@pytest.fixture
def tables() -> Tables:
    """Segments 51 to 56 hold one visit each of `a` and of `b`; they are merged, without those of `a`."""
    tables = Tables()
    tables.reset([Table(n, n, Tally({"a": 1, "b": 1})) for n in range(51, 57)], after=50)
    tables.start(57)
    tables.replace(list(tables.sealed), Table(51, 56, Tally({"b": 6})))
    return tables


def test_a_count_from_before_a_merge_is_raised_by_what_the_merge_left_out(tables: Tables) -> None:
    assert tables.raised("a", Known(0, 50, 10), to=57, included=57) == Known(0, 57, 16)
    assert tables.raised("a", Known(0, 54, 14), to=57, included=57) == Known(0, 57, 16)
    assert tables.raised("a", Known(0, 50, 10), to=53, included=53) == Known(0, 53, 13)


def test_a_count_that_includes_all_of_a_merge_or_none_of_it_stays(tables: Tables) -> None:
    assert tables.raised("b", Known(0, 50, 10), to=50, included=50) == Known(0, 50, 10)
    assert tables.raised("b", Known(0, 56, 10), to=56, included=56) == Known(0, 56, 10)
    assert tables.raised("b", Known(0, 53, 10), to=56, included=56) == Known(0, 56, 13)


def test_a_count_that_would_be_cut_in_two_by_a_merge_is_not_known(tables: Tables) -> None:
    assert tables.raised("b", Known(0, 50, 10), to=53, included=53) is None
    assert tables.raised("b", Known(0, 53, 10), to=53, included=53) is None


def test_what_a_merge_left_out_is_known_for_a_while_only(tables: Tables) -> None:
    for now in (0.0, 1.0, 1.2, 10.0):
        tables.drop([], now)
        assert tables.raised("a", Known(0, 50, 10), to=57, included=57)
    tables.drop([], 10.1)
    assert tables.raised("a", Known(0, 50, 10), to=57, included=57) is None
    assert tables.raised("a", Known(0, 57, 16), to=57, included=57) == Known(0, 57, 16)


def test_a_table_merged_twice_and_dropped_still_has_what_it_left_out(tables: Tables) -> None:
    [merged] = tables.sealed
    tables.current.visits.add([("a", 2)])
    tables.seal()
    tables.replace([merged, tables.sealed[1]], Table(51, 57, Tally({"b": 6})))
    assert tables.raised("a", Known(0, 50, 10), to=57, included=57) == Known(0, 57, 18)
    tables.drop(list(tables.sealed), 1.0)
    assert tables.raised("a", Known(0, 50, 10), to=57, included=57) == Known(0, 57, 18)
