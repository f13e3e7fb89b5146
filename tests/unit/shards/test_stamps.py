"""A stamp tells each writer the last change that another one has made."""

from __future__ import annotations

from random import Random

from visit_counter.shards.stamps import next_stamp, others_change


def test_each_writer_sees_a_new_change_exactly_when_another_one_has_applied() -> None:
    random = Random(1)
    writers = ["a", "ab", "b"]
    stamp, seen, every = "", dict.fromkeys(writers, ""), set()
    for number in range(300):
        writer = random.choice(writers)
        stamp = next_stamp(stamp, writer, f"{number}:nonce")
        for other in writers:
            change = others_change(stamp, other)
            if other == writer:
                assert change == seen[other]
            else:
                assert change not in every
                seen[other] = change
        every.add(f"{writer}/{number}:nonce")


def test_a_partition_without_a_stamp_was_changed_by_nobody() -> None:
    assert others_change("", "a") == ""
    assert others_change(next_stamp("", "a", "1:x"), "a") == ""
