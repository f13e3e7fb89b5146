"""Guards: which visits are answered and not counted, and which are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.clock import Clock
from visit_counter.errors import RateError
from visit_counter.model.rates import Rate, parse_rate
from visit_counter.statistics import shared_table
from visit_counter.statistics.guards import Guards, Ignored, Sent
from visit_counter.statistics.shared_table import SharedTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from visit_counter.config.settings import Settings

A, B = Sent("192.0.2.1", user_agent="one"), Sent("192.0.2.2", user_agent="one")


@pytest.fixture
def make(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Guards, Clock]]:
    """Make guards with tables of their own, and their clock."""
    monkeypatch.setattr(shared_table, "_shared", {})

    def guards(**environ: str) -> tuple[Guards, Clock]:
        clock = Clock()
        return Guards(settings(VISITS_PROFILE="basic", **environ), clock), clock

    return guards


def refused(guards: Guards, sent: Sent, page: str = "a") -> float:
    with pytest.raises(RateError) as caught:
        guards.judge(page, sent)
    return caught.value.wait_seconds


def test_nothing_is_guarded_unless_it_is_asked_for(make: Callable[..., tuple[Guards, Clock]]) -> None:
    guards, _ = make()
    assert not guards.are_active


def test_a_client_may_send_its_visits_at_once_and_then_one_whenever_one_is_due(
    make: Callable[..., tuple[Guards, Clock]],
) -> None:
    guards, clock = make(VISITS_RATE_LIMIT="3/minute")
    for page in ("a", "b", "c"):
        assert guards.judge(page, A) is None
    assert refused(guards, A) == pytest.approx(20)
    assert guards.judge("a", B) is None
    clock.now += 19.9
    refused(guards, A)
    clock.now += 0.2
    assert guards.judge("a", A) is None
    refused(guards, A)
    clock.now += 3600
    for _ in range(3):
        assert guards.judge("a", A) is None
    refused(guards, A)
    assert guards.figures() == {"rate": 4}


def test_a_batch_uses_the_limit_up_as_so_many_visits_do(make: Callable[..., tuple[Guards, Clock]]) -> None:
    guards, clock = make(VISITS_RATE_LIMIT="10/minute", VISITS_REPEAT_SECONDS="60")
    assert guards.judge(None, A, 8) is None
    with pytest.raises(RateError) as caught:
        guards.judge(None, A, 4)
    assert caught.value.wait_seconds == pytest.approx(12)
    assert guards.judge(None, A, 2) is None
    refused(guards, A)
    clock.now += 3600
    with pytest.raises(RateError):
        guards.judge(None, A, 11)
    assert guards.judge(None, A, 10) is None
    assert guards.figures() == {"rate": 16}


def test_all_addresses_of_an_ipv6_line_share_a_limit(make: Callable[..., tuple[Guards, Clock]]) -> None:
    guards, _ = make(VISITS_RATE_LIMIT="1/hour")
    assert guards.judge("a", Sent("2001:db8:1:2::1")) is None
    refused(guards, Sent("2001:db8:1:2:ffff::9"))
    assert guards.judge("a", Sent("2001:db8:1:3::1")) is None


def test_a_visitor_counts_once_on_a_page_until_the_time_is_over(make: Callable[..., tuple[Guards, Clock]]) -> None:
    guards, clock = make(VISITS_REPEAT_SECONDS="60")
    assert guards.judge("a", A) is None
    clock.now += 59
    assert guards.judge("a", A) is Ignored.REPEAT
    assert guards.judge("b", A) is None
    assert guards.judge("a", B) is None
    assert guards.judge("a", A._replace(user_agent="two")) is None
    clock.now += 1
    assert guards.judge("a", A) is None
    assert guards.figures() == {"repeat": 1}


def test_own_addresses_are_those_of_the_client_behind_trusted_proxies(
    make: Callable[..., tuple[Guards, Clock]],
) -> None:
    guards, _ = make(VISITS_IGNORE_ADDRESSES="192.0.2.0/24, 2001:db8::/32")
    assert guards.judge("a", A) is Ignored.OWN
    assert guards.judge("a", Sent("127.0.0.1", "198.51.100.1, 192.0.2.7")) is Ignored.OWN
    assert guards.judge("a", Sent("127.0.0.1", "192.0.2.7, 198.51.100.1")) is None
    assert guards.judge("a", Sent("198.51.100.1", "192.0.2.7")) is None
    assert guards.judge("a", Sent("::1", "2001:db8::5")) is Ignored.OWN


@pytest.mark.parametrize("text", ["60", "0/minute", "60/week", "-1/hour", "1.5/hour", " 1/hour"])
def test_what_is_no_rate_stops_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse_rate(text)
    assert parse_rate("90/hour") == Rate(90, 3600)


def test_of_a_full_bucket_the_smallest_number_makes_room() -> None:
    table = SharedTable(entries=8)
    for number in range(1, 10):
        table.set(number, "key", str(number))
    assert [table.get("key", str(number)) for number in range(1, 10)] == [0.0, *map(float, range(2, 10))]
