"""Working by the shard map that the shards keep: it is found, made at the first start, and given to shards without it.

Each server says which shard it is. If that is not the shard that the list has at its address, it is not used.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from visit_counter.errors import ShardMapError, StoreError, StoreRefusedError, StoreUnavailableError
from visit_counter.shards.identity import Identity, swapped, why_mistaken
from visit_counter.shards.parallel import in_parallel
from visit_counter.shards.shard_map import ShardMap, newest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from visit_counter.shards.contract import Store
    from visit_counter.shards.ownership import Ownership

log = logging.getLogger(__name__)

# After an error the shards are asked for a newer shard map, at most this often.
_ASK_AGAIN_SECONDS = 5.0
# The warnings that were given already. The master warns at the start, and its workers inherit this set from it.
_warned: set[str] = set()


def _warn_once(warning: str) -> None:
    if warning not in _warned:
        _warned.add(warning)
        log.warning("%s", warning)


class Agreement:
    """What one process knows of the shard map; `ownership` works by it. Safe to use from several threads.

    `stores`: by their names in the list. `name`: what they are called together, in errors. Without `shared` the shards
    are neither asked for a shard map nor given one: no other process could disagree.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        ownership: Ownership,
        *,
        name: str,
        shared: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores, self._ownership, self._name = stores, ownership, name
        self._is_known = not shared
        self._shared = shared
        # By name, why the server in the list is not that shard; nothing is read or written there.
        self.mistaken: Mapping[str, str] = {}
        self._lock = Lock()
        self._clock = clock
        self._asked = clock()

    def refresh_shard_map(self) -> None:
        """Read the shard map from the shards, and keep the known one if theirs is not newer. Raises StoreError."""
        if self._shared:
            with self._lock:
                self._adopt_newest()

    def load_shard_map(self) -> None:
        """Make sure that a shard map is known. Raises StoreError if none is; then nothing may be read or written."""
        if not self._is_known:
            with self._lock:
                if not self._is_known:
                    self._adopt_newest()

    def _adopt_newest(self) -> None:
        """Adopt the newest shard map that the shards keep, and give it to members that lack it."""
        self._asked = self._clock()
        texts, said, errors = self._kept()
        try:
            best = newest(texts)
        except ShardMapError as error:
            raise StoreRefusedError(self._name, str(error)) from None
        present = self._ownership.shard_map
        if best is None and present is None:
            if errors:
                # One of those that are down may keep a shard map in which the others have no part.
                raise StoreUnavailableError(
                    errors[0].store, f"{errors[0].reason}; which shards have the counts is unknown"
                )
            best = self._found()
        if best is not None and (present is None or best.id != present.id or best.version > present.version):
            self._ownership.adopt(best)
            if best.shards.keys() != self._stores.keys():
                _warn_once(
                    f"VISITS_SHARDS has {', '.join(self._stores)}, the counts are on {', '.join(sorted(best.shards))}; "
                    "flask shards rebalance moves them"
                )
        self._recognise(texts, said)
        self._is_known = True
        self._give(texts, said)

    def _kept(self) -> tuple[dict[str, str], dict[str, Identity], list[StoreError]]:
        """Return what each shard keeps as the shard map, who it says it is, and why the others do not answer."""

        def ask(store: Store) -> tuple[str, str, Identity] | StoreError:
            try:
                # In this order: a rebalance that gives a shard a new name writes it into the shard map first.
                return store.name, store.read_shard_map(), store.read_identity()
            except StoreError as error:
                return error

        answers = in_parallel([partial(ask, store) for store in self._stores.values()])
        known = [answer for answer in answers if not isinstance(answer, StoreError)]
        return (
            {name: text for name, text, _ in known},
            {name: identity for name, _, identity in known},
            [answer for answer in answers if isinstance(answer, StoreError)],
        )

    def _recognise(self, texts: Mapping[str, str], said: Mapping[str, Identity]) -> None:
        """Compare which shards the servers say they are with the list; a server that is another shard is not used."""
        shard_map = self._ownership.shard_map
        if shard_map is None:
            return
        complaints = {
            name: why_mistaken(name, self._stores[name].address, one, shard_map) for name, one in said.items()
        }
        silent = {name: self._stores[name].address for name, one in said.items() if not one.names and texts[name]}
        complaints |= swapped(silent, shard_map)
        # For a server that does not answer now, what it said last still holds.
        complaints = {name: why for name, why in self.mistaken.items() if name not in said} | complaints
        self.mistaken = {
            name: f"{self._stores[name].address} is not this shard: {why}" for name, why in complaints.items() if why
        }
        for name, why in self.mistaken.items():
            _warn_once(f"shard {name}: {why}; see VISITS_SHARDS")
        self._ownership.recognise(said, self.mistaken)
        known_as = {store.name: name for name, store in self._ownership.renamed.items()}
        for name, store in self._stores.items():
            own = said[name].name if name in said and name not in self.mistaken else ""
            wanted = own or known_as.get(name) or (name if name in shard_map.everyone else "")
            if wanted:
                store.expect(Identity(shard_map.id, (wanted,)))

    def _found(self) -> ShardMap:
        """Make a shard map of the configured shards, all of which are known to have none.

        Of several hosts that do this at once the first one at the shard with the lowest name wins.
        """
        made = ShardMap(1, {name: store.address for name, store in self._stores.items()})
        first = self._stores[min(self._stores)]
        try:
            return ShardMap.from_text(first.offer_shard_map(made.to_text()))
        except ShardMapError as error:
            raise StoreRefusedError(self._name, str(error)) from None

    def _give(self, texts: Mapping[str, str], said: Mapping[str, Identity]) -> None:
        """Give the shard map and its name to members that lack it: at the first start, or after one lost its data."""
        shard_map = self._ownership.shard_map
        if shard_map is None:
            return
        text = shard_map.to_text()
        members = {name: self._stores[name] for name in shard_map.everyone.keys() & self._stores.keys()}
        for name, store in (members | dict(self._ownership.renamed)).items():
            if store.name not in texts or store.name in self.mistaken:
                continue
            try:
                if texts[store.name] != text and name in self._stores:
                    store.offer_shard_map(text)
                if not said[store.name].names:
                    store.name_server(Identity(shard_map.id, (name,)))
            except StoreError as error:
                log.debug("no shard map for %s: %s", name, error)

    def refresh_after_error(self) -> None:
        """After an error: have the next call work by a newer shard map if there is one."""
        if self._shared and self._clock() - self._asked >= _ASK_AGAIN_SECONDS and self._lock.acquire(blocking=False):
            try:
                self._adopt_newest()
            except StoreError as error:
                log.debug("no newer shard map: %s", error)
            finally:
                self._lock.release()
