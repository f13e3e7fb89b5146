"""Who a shard is: kept in the shard itself, so that a wrong address is found out before a page is read there. Pure.

Under the key `visits:{0}:shard` stands the installation (the `id` of its shard map) and the shard's name:

    9f1c02ab b

A rebalance that gives the shard a new name keeps the former name behind it, for hosts whose list still has that one.
The name is compared whenever a connection is opened. A server that says it is another shard is not used: two addresses
of the list may be swapped, or a backup may have been restored into another shard's server. A server that says nothing
is new, or was emptied, or was last used by a version that did not write this. It gets its name with the shard map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from visit_counter.shards.shard_map import ShardMap

# With a hash tag, so that a cluster finds it as it finds partition 0.
KEY = b"visits:{0}:shard"


class Identity(NamedTuple):
    """What a shard says it is: the name it has now comes first. Without names it says nothing."""

    installation: str = ""
    names: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the text that is kept."""
        return " ".join((self.installation, *self.names)).strip()

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Read what a shard keeps; what makes no sense says nothing."""
        installation, *names = text.split() or [""]
        return cls(installation, tuple(names)) if names else cls()

    @property
    def name(self) -> str:
        """The name that the shard has now; "" if it says nothing."""
        return self.names[0] if self.names else ""


class Expected:
    """Which shard the server at one address must be; any until `identity` is set. Shared by its connections."""

    def __init__(self) -> None:
        self.identity = Identity()

    def complaint(self, text: str) -> str:
        """Return why a server that keeps this text is not the right one, or ""."""
        said, wanted = Identity.from_text(text), self.identity
        if not said.names or not wanted.names:
            return ""
        if said.installation != wanted.installation:
            return f"the server says it is {said.name} of another installation"
        if wanted.name not in said.names:
            return f"the server says it is the shard {said.name}"
        return ""


def why_mistaken(name: str, address: str, said: Identity, shard_map: ShardMap) -> str:
    """Return why the server that the list calls `name` is not the shard of that name, or "".

    `said`: what the server says of itself. A new name in the list is no mistake, because the server is known by the
    name that it has. Nor is a name that a rebalance is giving it: the shard map has its address under that name.
    """
    known = shard_map.everyone
    if not said.names:
        return ""
    if said.installation != shard_map.id:
        return f"it says it is the shard {said.name} of another installation"
    if name not in known or said.name == name:
        return ""
    if known[name] == known.get(said.name, address):
        return ""
    return f"it says it is the shard {said.name}"


def swapped(addresses: Mapping[str, str], shard_map: ShardMap) -> dict[str, str]:
    """Return, by name, why servers that do not say who they are cannot be right: their addresses are other shards'."""
    known = shard_map.everyone
    owner_of = {address: name for name, address in known.items()}
    return {
        name: f"the shards keep its address for {owner_of[address]}"
        for name, address in addresses.items()
        if name in known and owner_of.get(address, name) != name and known[name] != address
    }
