"""GET /badge/<page>.svg and .json: a count as a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from visit_counter.model.badges import STYLES

if TYPE_CHECKING:
    from flask.testing import FlaskClient

SVG = "{http://www.w3.org/2000/svg}"


def test_a_badge_shows_the_count_and_counts_only_when_asked_to(client: FlaskClient) -> None:
    assert "visits: 0" in client.get("/badge/a.svg").text
    assert "visits: 1" in client.get("/badge/a.svg?hit=1").text
    assert "visits: 1" in client.get("/badge/a.svg?hit=0").text
    client.head("/badge/a.svg?hit=1")
    assert client.get("/visits/a").json["visits"] == 1  # type: ignore[index]  # it is there


@pytest.mark.parametrize("style", STYLES)
def test_whatever_a_label_holds_the_picture_is_whole_and_says_it(client: FlaskClient, style: str) -> None:
    answer = client.get("/badge/a.svg", query_string={"label": """<b> & "ü" 日本""", "style": style, "color": "ff0"})
    assert answer.mimetype == "image/svg+xml"
    root = ET.fromstring(answer.data)  # noqa: S314 - our own
    assert root.attrib["aria-label"] == """<b> & "ü" 日本: 0"""
    assert root.findtext(f"{SVG}title") == root.attrib["aria-label"]


def test_image_proxies_keep_no_badge(client: FlaskClient) -> None:
    fields = client.get("/badge/a.svg").headers
    assert fields["Cache-Control"] == "max-age=0, no-cache, no-store, must-revalidate"
    assert "Set-Cookie" not in fields


def test_shields_reads_the_keys_it_knows_and_no_other(client: FlaskClient) -> None:
    client.post("/visits/a")
    answer = client.get("/badge/a.json?label=views&color=green&hit=1")
    assert json.loads(answer.data) == {"schemaVersion": 1, "label": "views", "message": "1", "color": "#97ca00"}


@pytest.mark.parametrize(
    "query", ["color=nocolour", "style=round", f"label={81 * 'a'}", "label=%FF", "label=%00", "color=12"]
)
def test_what_cannot_be_drawn_is_refused_and_counts_nothing(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/badge/a.svg?hit=1&{query}")
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert client.get("/visits/a").json["visits"] == 0  # type: ignore[index]  # it is there
