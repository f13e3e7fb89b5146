"""Whose request it is: the address of the client behind proxies that are believed. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Network = IPv4Network | IPv6Network
_KEPT = 8192


def parse_networks(text: str) -> tuple[str, ...]:
    """Return the networks of a comma list, which may be empty; raise ValueError for what is none."""
    return tuple(str(ip_network(part.strip())) for part in text.split(",") if part.strip())


class Networks:
    """Some networks, and whether an address is in one of them."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network) for network in networks]
        self.has = lru_cache(maxsize=_KEPT)(self._has)

    def _has(self, address: str) -> bool:
        found = parse_address(address)
        return found is not None and any(found in network for network in self._networks)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address as it stands in `X-Forwarded-For`, perhaps with a port or in brackets; None for none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def client_of(peer: str, forwarded: str, trusted: Networks) -> str:
    """Return the client's address: the rightmost hop that is no trusted proxy.

    `peer` is who has connected, `forwarded` what its `X-Forwarded-For` says; nobody else's is believed.
    """
    address = peer
    for hop in reversed(forwarded.split(",")) if forwarded else ():
        if not trusted.has(address):
            break
        found = parse_address(hop)
        if found is None:
            break  # whoever is before it cannot be known
        address = str(found)
    return address


@lru_cache(maxsize=_KEPT)
def household(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the first 64 bits of an IPv6 one, given to one line."""
    found = parse_address(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False).network_address)
    return str(found or address)
