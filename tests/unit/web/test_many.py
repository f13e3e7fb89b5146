"""GET and POST /visits: many pages at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask.testing import FlaskClient


def post(client: FlaskClient, visits: Any) -> Any:
    return client.post("/visits", data=json.dumps({"visits": visits}))


def test_many_visits_are_counted_with_one_call_and_read_with_one(client: FlaskClient) -> None:
    answer = post(client, [{"page": "a", "visits": 2}, {"page": "é/b"}, {"page": "a"}])
    assert (answer.status_code, answer.json) == (200, {"counted": 4})
    assert client.get("/visits?page=a&page=%C3%A9/b&page=never&page=a").json == {
        "visits": {"a": 3, "é/b": 1, "never": 0}
    }


def test_one_wrong_entry_and_nothing_is_counted(client: FlaskClient) -> None:
    wrong: list[Any] = [{"page": "b", "visits": 0}, {"page": ""}, "b", {"page": "b", "visits": True}, {"visits": 3}]
    answer = post(client, [{"page": "a"}, *wrong])
    assert (answer.status_code, sorted(answer.json["errors"])) == (400, ["1", "2", "3", "4", "5"])
    assert client.get("/visits?page=a&page=b").json == {"visits": {"a": 0, "b": 0}}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"visits": 3}', b'{"visits": []}', b"[" * 60_000, b"\xff"])
def test_what_is_no_batch_is_told_what_a_batch_is(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/visits", data=body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert "visits" in answer.json["detail"]  # type: ignore[index]  # it is there


def test_a_batch_holds_500_entries_and_a_query_100_pages(client: FlaskClient) -> None:
    assert post(client, [{"page": f"p{number}"} for number in range(500)]).json == {"counted": 500}
    assert post(client, [{"page": "a"}] * 501).status_code == 400
    found = client.get("/visits?" + "&".join(f"page=p{number}" for number in range(100))).json
    assert found == {"visits": {f"p{number}": 1 for number in range(100)}}
    assert client.get("/visits?" + "&".join(["page=a"] * 101)).status_code == 400


@pytest.mark.visits(RATE_LIMIT="3/hour", IGNORE_ADDRESSES="192.0.2.9")
def test_a_batch_is_guarded_as_single_visits_are(client: FlaskClient) -> None:
    assert post(client, [{"page": "a", "visits": 2}]).json == {"counted": 2}
    refused = post(client, [{"page": "a"}, {"page": "b"}])
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1200")
    own = client.post("/visits", json={"visits": [{"page": "a"}]}, headers={"X-Forwarded-For": "192.0.2.9"})
    assert (own.status_code, own.json) == (200, {"counted": 0, "ignored": "own"})
    assert client.get("/visits?page=a&page=b").json == {"visits": {"a": 2, "b": 0}}
    assert client.get("/health").json["ignored"] == {"own": 1, "rate": 2}  # type: ignore[index]  # it is there


@pytest.mark.parametrize("query", ["", "pages=a", "page=", "page=%FF", "page=a%00", "&".join(["x"] * 1001)])
def test_a_query_that_names_no_pages_is_refused(client: FlaskClient, query: str) -> None:
    assert client.get(f"/visits?{query}").status_code == 400
