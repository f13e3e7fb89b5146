"""The ring: the same page on the same shard, fair shares, and nothing moves that need not."""

import random
import string
from collections import Counter
from hashlib import sha256
from itertools import permutations

import pytest

from visit_counter.shards.ring import PARTITIONS, Ring, partition_of

DEFAULT = ("redis_7070", "redis_7071")
THREE = ("eu", "us", "asia")


def name_sets() -> list[list[str]]:
    """Ten names each, as people might give them: numbered, by place, by address, and random ones."""
    rng = random.Random(7)
    return [
        [f"redis_{7070 + index}" for index in range(10)],
        [f"shard-{letter}" for letter in "abcdefghij"],
        ["eu", "us", "asia", "afrika", "münchen", "東京", "x", "y", "z", "main"],
        [f"10.0.0.{index}:6379" for index in range(10)],
        *(["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 20))) for _ in range(10)] for _ in range(6)),
    ]


@pytest.mark.parametrize(
    ("page", "partition", "of_two", "of_three"),
    [
        ("a", 3651, "redis_7070", "us"),
        ("home", 3280, "redis_7070", "asia"),
        ("index.html", 2505, "redis_7070", "eu"),
        ("blog/2026/03/why-we-count", 2838, "redis_7071", "eu"),
        ("/leading/slash", 180, "redis_7071", "us"),
        ("docs/", 976, "redis_7071", "us"),
        ("a b", 3283, "redis_7071", "asia"),
        ("über-uns", 950, "redis_7070", "asia"),
        ("記事/1", 2893, "redis_7070", "eu"),
        ("🦊", 1831, "redis_7070", "asia"),
        ("x" * 255, 985, "redis_7071", "asia"),
    ],
)
def test_a_page_is_on_the_same_shard_for_ever(page: str, partition: int, of_two: str, of_three: str) -> None:
    assert partition_of(page) == partition
    assert Ring(DEFAULT).shard_of(partition) == of_two
    assert Ring(THREE).shard_of(partition) == of_three


@pytest.mark.parametrize(
    ("names", "digest"),
    [
        (DEFAULT, "5b1c9442b2eccd6a107aaa8c0a0869a2bf33d9d295b286186e35fb011667bc99"),
        (THREE, "a66bf4eba74252ee636d5b0af37f211d083d8ae3198f1d51fc734ba314c129a1"),
        (("only",), "ff288e19adc4f53dbcc9038b36b4bdecf16f1307c8842d266f42f140a757f4e9"),
    ],
)
def test_the_whole_table_of_owners_never_changes(names: tuple[str, ...], digest: str) -> None:
    assert sha256("\n".join(Ring(names).owners).encode()).hexdigest() == digest


@pytest.mark.parametrize("names", [DEFAULT, THREE, ("a", "b", "c", "d")])
def test_the_order_of_the_names_is_of_no_account(names: tuple[str, ...]) -> None:
    assert len({Ring(order).owners for order in permutations(names)}) == 1


def test_the_default_shards_own_half_of_the_partitions_each_within_half_a_percent() -> None:
    owned = Counter(Ring(DEFAULT).owners)
    assert all(abs(owned[name] - PARTITIONS / 2) <= PARTITIONS / 2 * 0.005 for name in DEFAULT), owned


@pytest.mark.parametrize("names", name_sets(), ids=lambda names: str(names[0]))
def test_a_shard_added_to_n_takes_its_share_and_moves_nothing_between_the_others(names: list[str]) -> None:
    for count in range(1, 10):
        before, after = Ring(names[:count]).owners, Ring(names[: count + 1]).owners
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        share = PARTITIONS / (count + 1)
        assert set(moved) == {names[count]}
        assert abs(len(moved) - share) <= share * 0.2, (count, len(moved), share)


def test_a_million_realistic_pages_are_halved_between_two_shards_within_two_percent() -> None:
    owners = Ring(DEFAULT).owners
    sections = ("blog", "docs/v2/api", "shop/item", "en/news/2026/03", "Über uns", "記事")
    held = Counter(
        owners[partition_of(f"{section}/{number}")] for section in sections for number in range(1_000_000 // 6 + 1)
    )
    total = held.total()
    assert total >= 1_000_000
    assert all(abs(held[name] / total - 0.5) <= 0.01 for name in DEFAULT), held


def test_one_shard_owns_everything() -> None:
    assert set(Ring(["only"]).owners) == {"only"}


@pytest.mark.parametrize("names", [[], ["a", "b", "a"]])
def test_a_ring_without_shards_or_with_a_name_twice_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"ring"):
        Ring(names)
