"""GET /why: what would become of a visit that came like this request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask.testing import FlaskClient


def why(client: FlaskClient, **fields: str) -> dict[str, Any]:
    answer = client.get("/why?page=a", headers={name.replace("_", "-"): value for name, value in fields.items()})
    assert answer.status_code == 200
    found: dict[str, Any] = answer.get_json()
    assert found.pop("page") == "a"
    return found


def test_with_no_guards_every_visit_is_counted(client: FlaskClient) -> None:
    assert why(client) == {"counted": True, "client": "127.0.0.1"}
    assert client.get("/visits/a").get_json()["visits"] == 0


@pytest.mark.visits(RATE_LIMIT="1/hour", REPEAT_SECONDS="60")
def test_asking_uses_nothing_up_and_tells_the_first_rule_that_holds(client: FlaskClient) -> None:
    for _ in range(3):
        assert why(client)["counted"]
    client.post("/visits/a")
    assert (why(client)["counted"], why(client)["reason"]) == (False, "rate")
    assert "VISITS_RATE_LIMIT" in why(client)["detail"]
    assert client.get("/health").get_json().get("ignored") is None


@pytest.mark.visits(REPEAT_SECONDS="60", IGNORE_ADDRESSES="192.0.2.0/24", ORIGINS="https://example.org")
def test_each_rule_has_its_reason(client: FlaskClient) -> None:
    assert why(client, X_Forwarded_For="192.0.2.1") | {"detail": ""} == {
        "counted": False,
        "client": "192.0.2.1",
        "reason": "own",
        "detail": "",
    }
    assert why(client, Origin="https://copy.example.net")["reason"] == "origin"
    assert why(client, Origin="https://example.org")["counted"]
    client.post("/visits/a")
    assert why(client)["reason"] == "repeat"
    assert why(client, User_Agent="another")["counted"]


@pytest.mark.visits(TRUSTED_PROXIES="10.0.0.1")
def test_a_proxy_that_is_not_believed_is_hinted_at(client: FlaskClient) -> None:
    found = why(client, X_Forwarded_For="192.0.2.1")
    assert found["client"] == "127.0.0.1"
    assert "VISITS_TRUSTED_PROXIES" in found["hint"]


@pytest.mark.parametrize("query", ["", "page=", "page=a&page=b", "page=%00"])
def test_it_is_asked_of_one_page(client: FlaskClient, query: str) -> None:
    assert client.get(f"/why?{query}").status_code == 400
