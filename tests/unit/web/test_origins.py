"""CORS on every answer, and the origins whose pages may count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from visit_counter.model.origins import Origins, parse_origins

if TYPE_CHECKING:
    from flask.testing import FlaskClient

HERE = {"Origin": "https://blog.example.org"}
ELSEWHERE = {"Origin": "https://copy.example.net"}
only_ours = pytest.mark.visits(ORIGINS="https://example.org,https://*.example.org")


@pytest.mark.parametrize(
    "path", ["/visits/a", "/visits/%00", "/nothing", "/visits?page=a", "/badge/a.svg", "/count.js", "/health"]
)
def test_every_answer_lets_every_page_read_it(client: FlaskClient, path: str) -> None:
    assert client.get(path, headers=ELSEWHERE).headers["Access-Control-Allow-Origin"] == "*"


def test_errors_of_a_visit_can_be_read_too(client: FlaskClient) -> None:
    too_large = client.post("/visits/a", data=bytes(64 * 1024 + 1), headers=ELSEWHERE)
    assert (too_large.status_code, too_large.headers["Access-Control-Allow-Origin"]) == (413, "*")
    wrong = client.delete("/count.js", headers=ELSEWHERE)
    assert (wrong.status_code, wrong.headers["Access-Control-Allow-Origin"]) == (405, "*")


def test_a_preflight_is_told_what_a_script_may_send(client: FlaskClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = client.options("/visits/a", headers=HERE | asked)
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]


@only_ours
def test_only_the_listed_origins_count_and_read(client: FlaskClient) -> None:
    mine = client.post("/visits/a", headers=HERE)
    assert mine.headers["Access-Control-Allow-Origin"] == HERE["Origin"]
    assert mine.vary.as_set() == {"origin"}
    other = client.post("/visits/a", headers=ELSEWHERE)
    assert (other.status_code, other.mimetype) == (403, "application/problem+json")
    assert ELSEWHERE["Origin"] in other.json["detail"]  # type: ignore[index]  # it is there
    assert "VISITS_ORIGINS" in other.json["detail"]  # type: ignore[index]  # it is there
    assert client.post("/visits", data=b'{"visits": [{"page": "a"}]}', headers=ELSEWHERE).status_code == 403
    assert client.post("/visits/a").json["visits"] == 2  # type: ignore[index]  # it is there


@only_ours
def test_others_are_told_nothing_that_their_script_could_read(client: FlaskClient) -> None:
    answer = client.get("/visits/a", headers=ELSEWHERE)
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.vary.as_set() == {"origin"}
    asked = {"Access-Control-Request-Method": "POST"}
    refused = client.options("/visits/a", headers=ELSEWHERE | asked)
    assert "Access-Control-Allow-Methods" not in refused.headers


def test_a_star_stands_for_labels_and_never_for_a_part_of_one() -> None:
    origins = Origins(parse_origins("https://*.example.org, http://localhost:8080/, null"))
    for allowed in (
        "https://a.example.org",
        "https://a.b.example.org",
        "HTTPS://A.example.org",
        "http://localhost:8080",
        "null",
    ):
        assert origins.allows(allowed), allowed
    for foreign in (
        "https://example.org",
        "https://aexample.org",
        "http://a.example.org",
        "https://a.example.org.net",
        "http://localhost",
    ):
        assert not origins.allows(foreign), foreign


@pytest.mark.parametrize(
    "text", ["example.org", "https://example.org/path", "*,https://a.org", "", "https://*", "ftp://a.org"]
)
def test_what_is_no_origin_stops_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        parse_origins(text)
