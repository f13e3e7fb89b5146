"""A name server that hangs: nobody waits for it longer than he says, and what was found once is used on."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import Clock
from tests.support.servers import wait_until
from visit_counter.shards.redis.names import Names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class NameServer:
    """Answers with what `answer` holds; hangs while `answers` is not set."""

    def __init__(self) -> None:
        self.answers = Event()
        self.answers.set()
        self.answer: Sequence[str] | OSError = ["10.0.0.1"]
        self.asked = 0

    def __call__(self, host: str) -> Sequence[str]:
        assert host == "shard"
        self.asked += 1
        self.answers.wait()
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def server() -> Iterator[NameServer]:
    """Return a name server, whose last look-ups end with the test."""
    made = NameServer()
    yield made
    made.answers.set()


def test_an_address_is_no_name(server: NameServer) -> None:
    names = Names(server)
    for address in ("127.0.0.1", "::1", "fe80::1"):
        assert names.addresses(address, 0) == (address,)
    assert server.asked == 0


def test_a_name_that_was_never_found_is_waited_for_no_longer_than_asked(server: NameServer) -> None:
    server.answers.clear()
    names = Names(server)
    begin = time.monotonic()
    for _ in range(3):
        with pytest.raises(OSError, match="the name server has not answered"):
            names.addresses("shard", 0.02)
    assert time.monotonic() - begin < 5  # the look-up itself would wait for ever
    assert server.asked == 1  # one look-up is under way, whoever asks
    server.answers.set()
    assert names.addresses("shard", None) == ("10.0.0.1",)


def test_the_last_good_address_is_used_while_the_name_server_hangs_or_fails(server: NameServer) -> None:
    clock = Clock()
    names = Names(server, clock)
    assert names.addresses("shard", None) == ("10.0.0.1",)
    server.answers.clear()
    for _ in range(5):
        clock.now += 3600
        assert names.addresses("shard", 0) == ("10.0.0.1",)
    assert server.asked == 2
    server.answer = OSError("no such name")
    server.answers.set()
    clock.now += 3600
    assert names.addresses("shard", 0) == ("10.0.0.1",)


def test_a_new_address_is_found_behind_the_back_of_whoever_asks(server: NameServer) -> None:
    clock = Clock()
    names = Names(server, clock)
    assert names.addresses("shard", None) == ("10.0.0.1",)
    server.answer = ["10.0.0.2", "10.0.0.2", "10.0.0.3"]
    assert names.addresses("shard", 0) == ("10.0.0.1",)
    assert server.asked == 1  # it is fresh
    clock.now += 2
    assert names.addresses("shard", 0) == ("10.0.0.1",)
    wait_until(lambda: names.addresses("shard", 0) == ("10.0.0.2", "10.0.0.3"), "the new addresses")


@pytest.mark.parametrize("answer", [OSError("no such name"), []])
def test_a_name_that_is_none_is_told_and_asked_for_again(server: NameServer, answer: OSError | list[str]) -> None:
    server.answer = answer
    names = Names(server)
    for times in (1, 2):
        with pytest.raises(OSError, match=r"no such name|has no address"):
            names.addresses("shard", None)
        assert server.asked == times


def test_what_can_be_no_name_is_an_error_like_any_other() -> None:
    with pytest.raises(OSError, match="is no name"):
        Names().addresses("a" * 70 + ".example", None)
