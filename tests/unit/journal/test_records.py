"""The journal's records."""

from collections import Counter
from itertools import product

import pytest

from visit_counter.journal.records import FLUSHED, SEAL, Record, Replay, encode, parse, read_visits, visit_line


def replayed(data: bytes) -> Replay:
    result = Replay()
    result.add(data)
    return result


def test_a_line_is_pinned_so_that_an_older_journal_stays_readable() -> None:
    assert visit_line("blog/hello") == b"a1430278\t1\tblog/hello\n"
    assert encode(SEAL, b"8:6f1d2c3b9a04").endswith(b"\tseal\t8:6f1d2c3b9a04\n")


@pytest.mark.parametrize("page", ["a", "/", "a b", "ü/ø", "seal", "1", "x" * 255, "a\\tb", "a1430278 1 x"])
def test_every_page_comes_back_from_its_line(page: str) -> None:
    assert replayed(visit_line(page, 7) + visit_line(page, 3)).visits == {page: 10}


def test_a_line_with_any_byte_changed_is_not_taken_for_another() -> None:
    line = visit_line("blog/hello", 12)
    for at in range(len(line)):
        for bit in range(8):
            changed = line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :]
            visits = replayed(changed).visits
            # Hexadecimal digits read the same in capitals; nothing else may.
            assert visits in ({}, {"blog/hello": 12})
            assert not visits or changed.lower() == line


def test_a_record_cut_anywhere_does_not_spoil_the_next_and_is_not_counted() -> None:
    line, following = visit_line("first/page", 5), visit_line("second", 2)
    for length in range(len(line)):
        result = replayed(line[:length] + following)
        assert result.visits == {"second": 2}, length


def test_nothing_behind_a_seal_counts() -> None:
    seal = encode(SEAL, b"3:abc")
    result = replayed(visit_line("a") + seal + visit_line("a") + seal)
    assert (result.visits, result.sealed_as) == ({"a": 1}, "3:abc")
    result.add(visit_line("b"))
    assert result.visits == {"a": 1}
    assert result.consumed == len(visit_line("a") + seal)


def test_a_page_that_looks_like_a_seal_is_a_page() -> None:
    assert replayed(visit_line("\\tseal\\t3:abc")).sealed_as == ""
    assert replayed(visit_line("seal")).visits == {"seal": 1}


def test_a_cut_seal_seals_nothing() -> None:
    seal = encode(SEAL, b"3:abc")
    for length in range(len(seal) - 1):
        result = replayed(seal[:length] + visit_line("a"))
        assert (result.visits, result.sealed_as) == ({"a": 1}, "")


def test_a_line_without_its_end_is_left_for_later() -> None:
    whole, part = visit_line("a"), visit_line("b")[:-1]
    result = replayed(whole + part)
    assert (result.visits, result.consumed) == ({"a": 1}, len(whole))


def test_unreadable_lines_are_counted_and_skipped() -> None:
    result = replayed(b"nonsense\n\0\0\0\n" + visit_line("a") + b"a1430278\tx\ty\n")
    assert (result.visits, result.unreadable) == ({"a": 1}, 3)


def test_events_are_told_apart_from_visits() -> None:
    assert parse(encode(FLUSHED, b"7")[:-1]) == Record(FLUSHED, b"7")
    result = replayed(encode(FLUSHED, b"7") + visit_line("flushed"))
    assert (result.events, result.visits) == ([Record(FLUSHED, b"7")], {"flushed": 1})


def test_a_glance_at_lines_sees_what_a_close_look_does_or_says_that_one_is_needed() -> None:
    pieces = [visit_line("a"), visit_line("b", 3), visit_line("a")[:-4], b"nonsense\n", encode(SEAL, b"3:abc")]
    pieces += [encode(FLUSHED, b"7"), b"\n"]
    for data in map(b"".join, product(pieces, repeat=3)):
        found, close = read_visits(data), replayed(data)
        ordinary = close.consumed == len(data) and not (close.events or close.unreadable or close.sealed_as)
        assert (found is not None) == ordinary, data
        if found is not None:
            total: Counter[str] = Counter()
            for page, visits in found:
                total[page] += visits
            assert total == close.visits, data
