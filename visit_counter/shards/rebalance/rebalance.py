"""Rebalance: bring every partition to the shard that the configured list gives it to, while the service runs.

    lock -> plan -> tell the shards (`next`) -> move, a group of partitions at a time -> tell the shards (`shards`)

The plan is made from what stands in the place of every partition on every shard, so a run that follows a killed one
sees where that one stopped and goes on from there; nothing is remembered anywhere else. `moving` has the states
of a partition and why the steps are in this order.

Copies are made field by field, not with DUMP: the servers may be of different versions.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from visit_counter import steps
from visit_counter.config.shard_urls import Shard
from visit_counter.errors import RebalanceError, ShardMapError, StoreError
from visit_counter.shards.identity import KEY as IDENTITY_KEY
from visit_counter.shards.identity import Identity, swapped, why_mistaken
from visit_counter.shards.rebalance import moving
from visit_counter.shards.rebalance.moving import Place
from visit_counter.shards.rebalance.plan import Plan, groups_of, make_plan
from visit_counter.shards.rebalance.running import run_all, run_on_disk
from visit_counter.shards.redis.commands import offer_command
from visit_counter.shards.redis.scripts import load_script
from visit_counter.shards.redis.shapes import anything, are_pairs, is_number, is_text, sequence
from visit_counter.shards.redis.store import RedisStore
from visit_counter.shards.shard_map import ShardMap, newest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# How many partitions are frozen at once. With 2,400 pages in each, their copy takes about half a second, during which
# a flush leaves their visits pending.
GROUP = 32
_SCAN_FIELDS = b"1000"
_LOCK_KEY = b"visits:{0}:rebalance"

_LOCK = load_script(__package__, "lock")
_UNLOCK = load_script(__package__, "unlock")


def gather_stores(wanted: Sequence[Shard], former: Sequence[Shard] = ()) -> dict[str, RedisStore]:
    """Return a store for every shard that is wanted or may have partitions; those in no list by their kept address.

    A kept address has no password: where one is needed, the shard has to be in `former`. Raises RebalanceError.
    """
    if clusters := [shard.name for shard in (*former, *wanted) if shard.url.startswith("redis+cluster:")]:
        raise RebalanceError(
            f"{', '.join(clusters)}: partitions cannot be moved to or from a cluster; it moves its own"
        )
    stores = {shard.name: _patient(shard) for shard in (*former, *wanted)}
    shard_map, _ = _read_shard_map(stores)
    if shard_map is not None:
        for name, address in shard_map.everyone.items():
            stores.setdefault(name, _patient(Shard(name, address)))
    return stores


def _patient(shard: Shard) -> RedisStore:
    return RedisStore(shard, connect_seconds=2.0, read_seconds=5.0)


def _read_shard_map(stores: Mapping[str, RedisStore]) -> tuple[ShardMap | None, dict[str, str]]:
    """Return the shard map that these shards keep, and what each keeps; all must answer. Raises RebalanceError."""
    try:
        texts = {name: store.read_shard_map() for name, store in stores.items()}
        return newest(texts), texts
    except (StoreError, ShardMapError) as error:
        raise RebalanceError(f"{error}; a rebalance needs all shards") from None


class Rebalance:
    """Brings the partitions to the shards named in `wanted`.

    `former`: the names the counts are on if the shards do not say so themselves. `lock_seconds`: how long after a
    killed run another one may begin. Every method may raise RebalanceError.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        stores: Mapping[str, RedisStore],
        *,
        former: Sequence[str] = (),
        lock_seconds: float = 10.0,
    ) -> None:
        self._wanted, self._stores, self._former = list(wanted), stores, list(former)
        self._run = secrets.token_hex(4)
        self._lock_seconds = lock_seconds
        self._shard_map: ShardMap | None = None

    def plan(self) -> Plan:
        """Return what there is to do; changes nothing."""
        shard_map, texts = _read_shard_map(self._stores)
        if shard_map is None:
            names = self._former or self._wanted
            shard_map = ShardMap(0, {name: self._stores[name].address for name in names})
        elif lost := sorted(name for name in shard_map.shards if not texts.get(name)):
            raise RebalanceError(
                f"{', '.join(lost)}: another server is at this address, or it has lost its data; if it is to take "
                "the place of a lost one, start the service with it first"
            )
        else:
            self._check_identities(shard_map)
        return make_plan(shard_map, self._wanted, self._stores)

    def run(
        self,
        begin: Callable[[Plan], None] = lambda _: None,
        progress: Callable[[int], None] = lambda _: None,
        *,
        set_aside: bool = False,
    ) -> Plan:
        """Do all there is to do and return what it was; raises RebalanceError.

        `begin` is called with the plan, and `progress` with how many partitions have just been moved. What was moved
        stays moved when this ends early, however it ends; another run goes on from there.

        `set_aside`: see `Plan.strays`.
        """
        self._wait_for_lock()
        try:
            plan = self.plan()
            self._shard_map = plan.shard_map
            begin(plan)
            if not plan.is_done or (set_aside and plan.others):
                self._carry_out(plan, progress, set_aside=set_aside)
        finally:
            self._unlock()
        return plan

    def _carry_out(self, plan: Plan, progress: Callable[[int], None], *, set_aside: bool) -> None:
        if plan.strays and not set_aside:
            shards = ", ".join(f"{len(found)} partitions on {name}" for name, found in sorted(plan.strays.items()))
            raise RebalanceError(f"other counts are in the way: {shards}; --set-aside keeps them under other keys")
        shard_map = plan.shard_map
        self._tell(shard_map.shards, {**shard_map.next, **plan.wanted})
        self._name_shards(shard_map.id)
        if set_aside:
            self._set_aside(plan)
        for partition, shard, owner in plan.rejects:
            run_on_disk(self._stores[shard], [moving.reject(partition, owner)])
        for partition, shard in plan.thaws:
            run_all(self._stores[shard], [moving.thaw(partition)])
        for partition, shard in plan.activations:
            run_all(self._stores[shard], [moving.activate(partition)])
        for (source, target), group in groups_of(plan.moves, GROUP):
            if not self._lock():
                raise RebalanceError("another rebalance has begun; this one had stopped for too long")
            self._move([move.partition for move in group], source, target)
            progress(len(group))
        steps.step("shard_map")
        self._tell(plan.wanted, {})

    def _check_identities(self, shard_map: ShardMap) -> None:
        """Raise RebalanceError for servers that are not the shards they are taken for."""
        said = {name: _identity(store) for name, store in self._stores.items()}
        complaints = {
            name: why_mistaken(name, self._stores[name].address, one, shard_map) for name, one in said.items()
        }
        silent = {name: self._stores[name].address for name, one in said.items() if not one.names}
        mistakes = [f"{name} at {self._stores[name].address}: {why}" for name, why in complaints.items() if why]
        mistakes += [f"{name}: {why}" for name, why in swapped(silent, shard_map).items()]
        if mistakes:
            raise RebalanceError(f"{'; '.join(mistakes)}; see VISITS_SHARDS")

    def _name_shards(self, installation: str) -> None:
        """Have each wanted shard say the name that it is to have; hosts may know it by the former one until then."""
        for name in self._wanted:
            store = self._stores[name]
            former = _identity(store).name
            if former != name:
                made = Identity(installation, (name, former) if former else (name,))
                run_on_disk(store, [(b"SET", IDENTITY_KEY, made.to_text().encode())])
                steps.step("name")

    def _set_aside(self, plan: Plan) -> None:
        """Rename counts that stand where another shard's partition has to go, to visits:{17}:stray:RUN."""
        for name, partitions in [*plan.strays.items(), *plan.others.items()]:
            keys = [moving.keys_of(partition)[0] for partition in partitions]
            run_all(self._stores[name], [(b"RENAMENX", key, key + b":stray:" + self._run.encode()) for key in keys])

    def _tell(self, shards: Mapping[str, str], following: Mapping[str, str]) -> None:
        """Write the next shard map to every shard, to removed ones last: they may be switched off soon."""
        former = self._shard_map
        assert former is not None  # noqa: S101 - set by `run`
        made = ShardMap(former.version + 1, dict(shards), dict(following), former.id)
        text = made.to_text()
        for name in [*made.everyone, *sorted(former.everyone.keys() - made.everyone.keys())]:
            (kept,) = run_on_disk(self._stores[name], [offer_command(text)], is_text)
            if kept != text.encode():
                raise RebalanceError(f"{name} has a newer shard map: another rebalance has been at work")
            steps.step("tell")
        self._shard_map = made

    # -- one at a time -----------------------------------------------------------------------------------------------

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + 2 * self._lock_seconds
        while not self._lock():
            if time.monotonic() > deadline:
                raise RebalanceError("another rebalance is at work")
            time.sleep(0.1)

    def _lock(self) -> bool:
        """Take or keep the lock; False while another run has it."""
        ask = (b"EVAL", _LOCK, b"1", _LOCK_KEY, self._run.encode(), b"%d" % (self._lock_seconds * 1000))
        (holder,) = run_all(self._lock_store, [ask], is_text)
        return bool(holder == self._run.encode())

    def _unlock(self) -> None:
        self._lock_store.run([(b"EVAL", _UNLOCK, b"1", _LOCK_KEY, self._run.encode())], [anything])

    @property
    def _lock_store(self) -> RedisStore:
        # Runs that could disturb each other have the former shards in common, and so nearly always this one. Where they
        # have not, the run that stands in each frozen partition (see `moving`) keeps them apart.
        return self._stores[min(self._stores)]

    # -- moving ------------------------------------------------------------------------------------------------------

    def _move(self, partitions: Sequence[int], source_name: str, target_name: str) -> None:
        """Move a group of partitions, each of which the source has, frozen or not."""
        source, target = self._stores[source_name], self._stores[target_name]
        leaving = Place("moving", target_name, self._run)
        arriving = Place("arriving", source_name, self._run)
        _expect(leaving, run_all(source, [moving.freeze(at, leaving) for at in partitions], is_text), source_name)
        steps.step("freeze")
        sizes = _copy(partitions, source, target)
        steps.step("copy")
        accepted = run_on_disk(target, [moving.accept(at, arriving, sizes[at]) for at in partitions], is_text)
        _expect(arriving, accepted, target_name)
        steps.step("accept")
        buried = run_on_disk(source, [moving.bury(at, leaving) for at in partitions], is_text)
        _expect(Place("moved", target_name), buried, source_name)
        steps.step("bury")
        _expect(Place(), run_all(target, [moving.activate(at) for at in partitions], is_text), target_name)
        steps.step("activate")


def _identity(store: RedisStore) -> Identity:
    try:
        return store.read_identity()
    except StoreError as error:
        raise RebalanceError(f"{error}; a rebalance needs all shards") from None


def _copy(partitions: Sequence[int], source: RedisStore, target: RedisStore) -> dict[int, int]:
    """Copy what is held on the source to a copy on the target; return the number of fields of each."""
    keys = {at: moving.keys_of(at) for at in partitions}
    replies = run_all(source, [(b"HLEN", keys[at][1]) for at in partitions], is_number)
    run_all(target, [(b"UNLINK", keys[at][2]) for at in partitions])
    cursors = dict.fromkeys(partitions, b"0")
    while cursors:
        scans = run_all(
            source,
            [(b"HSCAN", keys[at][1], cursor, b"COUNT", _SCAN_FIELDS) for at, cursor in cursors.items()],
            sequence(is_text, are_pairs),
        )
        writes = []
        for at, (cursor, pairs) in zip(list(cursors), scans, strict=True):
            if pairs:
                writes.append((b"HSET", keys[at][2], *pairs))
            cursors[at] = cursor
            if cursor == b"0":
                del cursors[at]
        if writes:
            run_all(target, writes)
    return dict(zip(partitions, replies, strict=True))


def _expect(place: Place, replies: Sequence[bytes], shard: str) -> None:
    """Raise RebalanceError unless every partition is now as it should be."""
    for reply in replies:
        if reply != place.to_bytes():
            found = reply.decode(errors="replace")
            raise RebalanceError(f"{shard}: a partition is {found!r} instead of {place!r}; run it again")
