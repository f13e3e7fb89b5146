"""The checks of the shards at a start and a reload; a module of its own, because its imports take long to load."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

from visit_counter.errors import StartupError, StoreError, StoreRefusedError
from visit_counter.shards.check import TIMEOUT_SECONDS, check_shard, warnings_of
from visit_counter.shards.factory import make_store
from visit_counter.shards.router import ShardedStore

if TYPE_CHECKING:
    from visit_counter.config.settings import Settings


def check_shards(settings: Settings) -> list[str]:
    """Return warnings about shards that are down or unsafe; raise StartupError for a wrong one."""
    warnings, mistakes = [], []
    for shard in settings.shards:
        try:
            reason = check_shard(shard)
        except StoreRefusedError as error:
            mistakes.append(str(error))
        else:
            if reason:
                warnings.append(f"shard {shard.name}: {reason}; visits are kept until it answers")
            else:
                warnings += [f"shard {shard.name}: {warning}" for warning in warnings_of(shard)]
    if mistakes:
        raise StartupError(f"{'; '.join(mistakes)}; see VISITS_SHARDS")
    return warnings


def tell_of_other_shards(settings: Settings) -> None:
    """Log it if the counts are on other shards than the list has; in the master, and so once for the host.

    Raises StartupError if a server says that it is another shard than the list has at its address.
    """
    if not settings.has.shares_pages:
        return
    stores = [make_store(shard, apply_seconds=TIMEOUT_SECONDS) for shard in settings.shards]
    with closing(ShardedStore(stores, shared=True)) as store:
        with suppress(StoreError):
            store.load_shard_map()
        if store.mistaken:
            mistakes = "; ".join(f"{name}: {why}" for name, why in store.mistaken.items())
            raise StartupError(f"{mistakes}; see VISITS_SHARDS")
