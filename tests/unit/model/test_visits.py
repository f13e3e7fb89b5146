"""Visits added up."""

from __future__ import annotations

from random import Random

from visit_counter.model.visits import Tally, repeated, together

PAGES = "abcdefgh"


def some(random: Random) -> Tally:
    return Tally({page: random.randint(1, 9) for page in random.sample(PAGES, random.randint(0, 8))})


def test_each_visit_is_added_in_its_order_and_given_the_visits_of_its_page() -> None:
    tally = Tally({"a": 5})
    assert tally.add([("a", 1), ("b", 2), ("a", 3)]) == [6, 2, 9]
    assert (tally, tally.total) == ({"a": 9, "b": 2}, 11)
    assert tally.add([repeated(("b", 2), 4)]) == [10]


def test_the_total_is_that_of_all_pages_whatever_was_done() -> None:
    for seed in range(200):
        random = Random(seed)
        one, other = some(random), some(random)
        pages = one.keys() | other.keys()
        parts = one.split(lambda page: ord(page) % 3)
        both = together([one, other])
        made = [both, one.minus(other), one.or_more(other), together(parts.values()), *parts.values()]
        assert both == {page: one.get(page, 0) + other.get(page, 0) for page in pages}
        assert all(tally.total == sum(tally.values()) for tally in made), seed


def test_a_tally_split_and_put_together_is_the_same() -> None:
    for seed in range(200):
        random = Random(seed)
        tally = some(random)
        parts = tally.split(lambda page: ord(page) % 3)
        assert together(parts.values()) == tally
        assert all(ord(page) % 3 == part for part, pages in parts.items() for page in pages)


def test_what_a_tally_lacks_added_to_it_makes_it_whole() -> None:
    for seed in range(200):
        random = Random(seed)
        one, other = some(random), some(random)
        whole = one.or_more(other)
        assert whole == together([one, whole.minus(one)]) == together([other, whole.minus(other)])


def test_what_is_merged_into_an_empty_tally_stays_as_it_was() -> None:
    tally, other = Tally(), Tally({"a": 1})
    tally.merge(other)
    tally.add([("a", 1)])
    assert (tally, other) == ({"a": 2}, {"a": 1})
