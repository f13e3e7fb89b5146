"""The table of profiles: what each has. Everything that depends on the profile asks this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """What a profile has.

    `most_shards`: how many of the listed shards it uses; None for all of them, which then own the pages together.
    `single_process`: its numbers are kept or cached in one process, so a second worker would answer with other numbers.
    `via`: what its answers name as `served_via` for a count from the store; None for the name of the page's shard.
    `pending_via`: the same for a count that visits in the journal are a part of; None for no other name.
    """

    most_shards: int | None
    journal: bool = False
    cache: bool = False
    single_process: bool = False
    via: str | None = None
    pending_via: str | None = None

    @property
    def has_shards(self) -> bool:
        """Tell whether counts are kept in shards; else they are in memory, and nothing is on disk."""
        return self.most_shards != 0

    @property
    def shares_pages(self) -> bool:
        """Tell whether the pages are divided between all shards; else the first shard has them all."""
        return self.most_shards is None


PROFILES = {
    "basic": Profile(most_shards=0, single_process=True, via="in_memory"),
    "redis": Profile(most_shards=1, via="redis"),
    "cached": Profile(most_shards=1, cache=True, single_process=True, via="redis"),
    "batched": Profile(most_shards=1, journal=True, cache=True, via="redis", pending_via="batch"),
    "sharded": Profile(most_shards=None, journal=True, cache=True),
}
