"""Whose request it is, behind proxies."""

from __future__ import annotations

import pytest

from visit_counter.model.clients import Networks, client_of, household, parse_networks


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, nonsense", "127.0.0.1"),
        ("127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("127.0.0.1", "203.0.113.9:5555", "203.0.113.9"),
        ("::1", "::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
def test_only_trusted_proxies_are_believed_and_the_rightmost_other_hop_is_the_client(
    peer: str, forwarded: str, client: str
) -> None:
    trusted = Networks(parse_networks("127.0.0.0/8, ::1, 10.0.0.0/8"))
    assert client_of(peer, forwarded, trusted) == client


def test_an_ipv6_line_is_one_client() -> None:
    assert household("2001:db8:1:2:aaaa::1") == household("2001:db8:1:2:bbbb::2") == "2001:db8:1:2::"
    assert household("192.0.2.1") == "192.0.2.1"
    assert household("::ffff:192.0.2.1") == "192.0.2.1"
