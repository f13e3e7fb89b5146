"""What a rebalance has to do, found out by inspecting every partition on every shard; changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from visit_counter.errors import RebalanceError
from visit_counter.shards.rebalance import moving
from visit_counter.shards.rebalance.moving import Place
from visit_counter.shards.rebalance.running import run_all
from visit_counter.shards.redis.shapes import is_number, is_text
from visit_counter.shards.ring import PARTITIONS, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from visit_counter.shards.redis.store import RedisStore
    from visit_counter.shards.shard_map import ShardMap

_CHUNK = 512


class Spot(NamedTuple):
    """A partition on one shard: what stands in its place, and how many fields (pages and watermarks) there are."""

    place: Place
    fields: int


class Move(NamedTuple):
    """A partition that has to go from one shard to another, and its number of pages."""

    partition: int
    source: str
    target: str
    pages: int


@dataclass
class Plan:
    """What a rebalance will do.

    `rejects`: (partition, shard that was to get it and may have a copy, owner that keeps it). `thaws`: (partition,
    shard) that stays after all. `activations`: (partition, shard) whose copy only has to be taken into use. `strays`:
    partitions, by shard, that have counts where another shard's partition has to go: another profile has counted there.
    `others`: partitions, by shard, that have counts there although another shard has them, in nobody's way.
    """

    shard_map: ShardMap
    wanted: dict[str, str]
    moves: list[Move] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)
    thaws: list[tuple[int, str]] = field(default_factory=list)
    activations: list[tuple[int, str]] = field(default_factory=list)
    strays: dict[str, list[int]] = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Tell whether there is nothing to do."""
        repairs = self.rejects or self.thaws or self.activations
        return not (self.moves or repairs or self.shard_map.next) and self.shard_map.shards == self.wanted

    def notes(self) -> list[str]:
        """Return what a person should know of counts that are where nobody reads them."""
        return [
            f"{name} holds counts of {len(found)} partitions that another shard has, e.g. {found[0]}: they are not "
            "read; --set-aside keeps them under other keys"
            for name, found in sorted(self.others.items())
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return how many partitions and pages go from where to where."""
        partitions, pages = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for move in self.moves:
            partitions[move.source, move.target] += 1
            pages[move.source, move.target] += move.pages
        return [
            {"from": source, "to": target, "partitions": partitions[source, target], "pages": pages[source, target]}
            for source, target in sorted(partitions)
        ]


def make_plan(shard_map: ShardMap, wanted: Sequence[str], stores: Mapping[str, RedisStore]) -> Plan:
    """Return what brings every partition to its shard on the ring of the names `wanted`.

    `stores`: a store for every name in `wanted` and in the shard map. Raises RebalanceError.
    """
    missing = shard_map.everyone.keys() - stores.keys()
    if missing:
        raise RebalanceError(f"no address of {', '.join(sorted(missing))}; give it with --from name=url")
    servers = {name: _server_id(store) for name, store in stores.items()}
    for server, times in Counter(servers[name] for name in wanted).items():
        if times > 1:
            names = ", ".join(name for name in wanted if servers[name] == server)
            raise RebalanceError(f"{names} are one and the same server")
    survey = Survey({name: _spots(store) for name, store in stores.items()}, servers)
    plan = Plan(shard_map, {name: stores[name].address for name in wanted})
    former, target_of = Ring(sorted(shard_map.shards)), Ring(wanted)
    for partition in range(PARTITIONS):
        holder = survey.holder(partition, former.shard_of(partition))
        _plan_partition(plan, partition, holder, target_of.shard_of(partition), survey)
        _note_others(plan, partition, holder, survey)
    _count_pages(plan, survey, stores)
    return plan


def _server_id(store: RedisStore) -> str:
    """Return what makes two names one place: the server's own id, and the database."""
    (info,) = run_all(store, [(b"INFO", b"server")], is_text)
    lines = [line for line in bytes(info).decode(errors="replace").splitlines() if line.startswith("run_id:")]
    if len(lines) != 1:
        raise RebalanceError(f"{store.name} does not say which server it is")
    return f"{lines[0]}/{store.address.partition('://')[2].partition('/')[2].strip('0')}"


def _spots(store: RedisStore) -> list[Spot]:
    spots = []
    for first in range(0, PARTITIONS, _CHUNK):
        replies = run_all(
            store, [moving.inspect(at) for at in range(first, min(first + _CHUNK, PARTITIONS))], moving.INSPECTED
        )
        spots += [Spot(Place.from_bytes(text), fields) for text, fields in replies]
    return spots


class Survey(NamedTuple):
    """What stands in the place of every partition, by shard, and which server each shard is."""

    spots: Mapping[str, Sequence[Spot]]
    servers: Mapping[str, str]

    def place(self, partition: int, shard: str) -> Place:
        """Return what stands in a partition's place on a shard; as if nothing did on a shard not known."""
        return self.spots[shard][partition].place if shard in self.spots else Place()

    def same(self, one: str, other: str) -> bool:
        """Tell whether two names are one server."""
        return one in self.servers and self.servers[one] == self.servers.get(other)

    def holder(self, partition: int, owner: str) -> str:
        """Return the shard that has a partition: the owner, or where the signs lead. Raises RebalanceError."""
        path = [owner]
        while (place := self.place(partition, path[-1])).kind == "moved":
            if place.shard not in self.spots:
                raise RebalanceError(
                    f"partition {partition} is on {place.shard}; give its address with --from name=url"
                )
            if place.shard in path:
                raise RebalanceError(f"partition {partition}: the signs lead in a circle, {' -> '.join(path)}")
            path.append(place.shard)
        if place.kind == "?":
            raise RebalanceError(f"{path[-1]}: visits:{{{partition}}} is not a partition")
        return path[-1]


def _plan_partition(plan: Plan, partition: int, holder: str, target: str, survey: Survey) -> None:
    place = survey.place(partition, holder)
    stays = survey.same(holder, target)
    if place.kind == "arriving":
        # Its source points here, so it was the last step that was missed.
        plan.activations.append((partition, holder))
    if place.kind == "moving":
        copied_in_vain = stays or not survey.same(place.shard, target)
        if copied_in_vain and place.shard in survey.spots:
            plan.rejects.append((partition, place.shard, holder))
        if stays:
            plan.thaws.append((partition, holder))
    if not stays:
        there = survey.spots[target][partition]
        if there.place.kind == "" and there.fields:
            plan.strays.setdefault(target, []).append(partition)
        plan.moves.append(Move(partition, holder, target, 0))


def _note_others(plan: Plan, partition: int, holder: str, survey: Survey) -> None:
    for name, spots in survey.spots.items():
        place, fields = spots[partition]
        is_in_the_way = partition in plan.strays.get(name, ())
        if place.kind == "" and fields and not is_in_the_way and not survey.same(name, holder):
            plan.others.setdefault(name, []).append(partition)


def _count_pages(plan: Plan, survey: Survey, stores: Mapping[str, RedisStore]) -> None:
    counted = []
    for (source, _), group in groups_of(plan.moves, _CHUNK):
        commands = [
            moving.count_pages(move.partition, held=bool(survey.place(move.partition, source).kind)) for move in group
        ]
        numbers = run_all(stores[source], commands, is_number)
        counted += [move._replace(pages=pages) for move, pages in zip(group, numbers, strict=True)]
    plan.moves = counted


def groups_of(moves: Sequence[Move], size: int) -> Iterator[tuple[tuple[str, str], list[Move]]]:
    """Give the moves in groups of the same source and target."""
    by_way: dict[tuple[str, str], list[Move]] = {}
    for move in moves:
        by_way.setdefault((move.source, move.target), []).append(move)
    for way, mine in sorted(by_way.items()):
        for first in range(0, len(mine), size):
            yield way, mine[first : first + size]
