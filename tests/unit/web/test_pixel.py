"""GET /pixel/<page>.gif: counts where no script may run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visit_counter.web.pixel import PIXEL

if TYPE_CHECKING:
    from flask.testing import FlaskClient


def test_each_pixel_counts_one_visit_of_its_page_and_is_kept_by_nobody(client: FlaskClient) -> None:
    for _ in range(2):
        answer = client.get("/pixel/blog.test/caf%C3%A9.html.gif")
        assert (answer.status_code, answer.data, answer.mimetype) == (200, PIXEL, "image/gif")
        assert answer.headers["Cache-Control"] == "max-age=0, no-cache, no-store, must-revalidate"
    assert client.get("/visits/blog.test/caf%C3%A9.html").json["visits"] == 2  # type: ignore[index]  # it is there


def test_the_pixel_is_43_bytes() -> None:
    assert (len(PIXEL), PIXEL[:6], PIXEL[-1:]) == (43, b"GIF89a", b";")


def test_a_look_at_the_head_counts_nothing(client: FlaskClient) -> None:
    assert client.head("/pixel/a.gif").status_code == 200
    assert client.get("/visits/a").json["visits"] == 0  # type: ignore[index]  # it is there


def test_what_is_no_page_is_refused(client: FlaskClient) -> None:
    assert client.get("/pixel/a%00.gif").status_code == 400
    assert client.get("/pixel/.gif").status_code == 400
    assert client.get("/pixel/a").status_code == 404
