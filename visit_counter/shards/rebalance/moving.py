r"""A partition on its way from one shard to another, as it stands on one shard.

    visits:{17}           the partition: a hash, or a string that says where it is:
                            moving NAME RUN     it is held here, frozen, and being copied to NAME
                            arriving NAME RUN   a whole copy of what NAME has is held here, frozen
                            moved NAME          it is on NAME
    visits:{17}:held      the hash itself, while it is frozen
    visits:{17}:copy      a copy that is not whole yet

A frozen partition is a string in its own place. So the server itself refuses every command of an ordinary flush, read
or visit with WRONGTYPE, and other partitions cost nothing more. Only a caller that was refused looks further: reads go
to `held`, writes wait, and a partition that has moved is followed. RUN tells one rebalance from another, so that a run
that was overtaken cannot finish the move of a later one.

The steps of a move; every one may be made again:

    source         target         who answers reads   writes
    hash           -              source              source
    moving         -              source              refused      freeze
    moving         arriving       source              refused      place (on the target's disk before the next step)
    moved          arriving       target              refused      bury (on the source's disk before the next step)
    moved          hash           target              target       activate

A server that crashes may lose its last second. The two waits for a disk keep any partition from having two owners then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from visit_counter.shards.redis.commands import partition_key
from visit_counter.shards.redis.scripts import load_script
from visit_counter.shards.redis.shapes import is_number, is_text, sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.shards.redis.exchange import Command

# The reply to `inspect`.
INSPECTED = sequence(is_text, is_number)


class Place(NamedTuple):
    """What stands in a partition's place: `kind` is "" (the hash, or nothing), moving, arriving or moved."""

    kind: str = ""
    shard: str = ""
    run: str = ""

    def to_bytes(self) -> bytes:
        """Return the string that is kept."""
        return " ".join(self).strip().encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Place:
        """Read the string; a kind of "?" is none of ours."""
        words = text.decode(errors="replace").split()
        if not words:
            return cls()
        return cls(*words) if words[0] in ("moving", "arriving", "moved") and 2 <= len(words) <= 3 else cls("?")


def keys_of(partition: int) -> tuple[bytes, bytes, bytes]:
    """Return the three keys of a partition: its own, `held` and `copy`. One hash tag, so one slot of a cluster."""
    key = partition_key(partition)
    return key, key + b":held", key + b":copy"


_FIND = load_script(__package__, "find")
_INSPECT = load_script(__package__, "inspect")
_COUNT_PAGES = load_script(__package__, "count_pages")
_FREEZE = load_script(__package__, "freeze")
_ACCEPT = load_script(__package__, "accept")
_BURY = load_script(__package__, "bury")
_RELEASE = load_script(__package__, "release")
_REJECT = load_script(__package__, "reject")


def find(partition: int, fields: Sequence[bytes]) -> Command:
    """Return the command that reads fields wherever on this shard they are."""
    return _script(_FIND, keys_of(partition)[:2], fields)


def inspect(partition: int) -> Command:
    """Return the command that tells what stands in a partition's place, and its number of fields."""
    return _script(_INSPECT, keys_of(partition)[:2])


def count_pages(partition: int, *, held: bool) -> Command:
    """Return the command that counts the pages of a partition."""
    return _script(_COUNT_PAGES, [keys_of(partition)[1 if held else 0]])


def freeze(partition: int, moving: Place) -> Command:
    """Return the command that stops writes to a partition and says where it goes."""
    return _script(_FREEZE, keys_of(partition)[:2], [moving.to_bytes()])


def accept(partition: int, arriving: Place, fields: int) -> Command:
    """Return the command that takes a copy as whole if it has this many fields."""
    return _script(_ACCEPT, keys_of(partition), [arriving.to_bytes(), b"%d" % fields])


def bury(partition: int, moving: Place) -> Command:
    """Return the command that deletes a partition whose copy is on the other shard's disk, and says where it is."""
    return _script(_BURY, keys_of(partition)[:2], [moving.to_bytes(), Place("moved", moving.shard).to_bytes()])


def activate(partition: int) -> Command:
    """Return the command that makes an arrived copy the partition."""
    return _script(_RELEASE, keys_of(partition)[:2], [b"arriving "])


def thaw(partition: int) -> Command:
    """Return the command that lets a frozen partition stay where it is."""
    return _script(_RELEASE, keys_of(partition)[:2], [b"moving "])


def reject(partition: int, owner: str) -> Command:
    """Return the command that deletes a copy, whole or not, and leaves a string that names the owner."""
    return _script(_REJECT, keys_of(partition), [Place("moved", owner).to_bytes()])


def _script(script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes] = ()) -> Command:
    # EVAL sends the whole text. These calls are rare, and so no server has to remember the script.
    return (b"EVAL", script, b"%d" % len(keys), *keys, *arguments)
