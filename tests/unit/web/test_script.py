"""GET /count.js: sent small, once, and safely. What it does in a page is tried in tests/browser."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask.testing import FlaskClient

GZIP = {"Accept-Encoding": "gzip, deflate, br"}


def test_it_is_under_1500_bytes_as_it_is_sent(client: FlaskClient) -> None:
    answer = client.get("/count.js", headers=GZIP)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(answer.data) < 1500
    assert gzip.decompress(answer.data) == client.get("/count.js").data


def test_a_browser_that_has_it_is_sent_nothing(client: FlaskClient) -> None:
    for headers in (GZIP, {}):
        first = client.get("/count.js", headers=headers)
        again = client.get("/count.js", headers={**headers, "If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Access-Control-Allow-Origin"] == "*"
    assert client.get("/count.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_every_field_says_how_it_may_be_kept_and_used(client: FlaskClient) -> None:
    fields = client.get("/count.js").headers
    assert fields["Content-Type"] == "text/javascript; charset=utf-8"
    assert fields["Cache-Control"] == "public, max-age=3600"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Vary"] == "Accept-Encoding"
    assert fields["Cross-Origin-Resource-Policy"] == "cross-origin"


def test_a_client_without_gzip_is_sent_plain_text(client: FlaskClient) -> None:
    answer = client.get("/count.js", headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in answer.headers
    assert b"data-visits" in answer.data
