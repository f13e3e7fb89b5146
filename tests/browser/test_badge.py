"""Badges in a real browser: what it draws, and what it tells a screen reader."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

import pytest

from visit_counter.model.badges import STYLES

if TYPE_CHECKING:
    from tests.browser.conftest import Web


@pytest.mark.parametrize("style", STYLES)
def test_a_badge_is_an_image_whose_name_is_read_once(web: Web, counter: int, style: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{counter}/badge/read.svg?label=read&style={style}") as answer:
        web.site.put(f"<!doctype html><title>t</title>{answer.read().decode()}")
    web.page.goto(web.url())
    nodes = web.page.context.new_cdp_session(web.page).send("Accessibility.getFullAXTree")["nodes"]
    told = {(node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("name", {}).get("value")}
    assert told == {("RootWebArea", "t"), ("image", "read: 0")}


@pytest.mark.parametrize(
    ("style", "height"), [("flat", 20), ("flat-square", 20), ("for-the-badge", 28), ("digits", 24)]
)
@pytest.mark.parametrize("label", ["visits", "", "a much longer label"])
def test_a_badge_is_as_high_as_those_beside_it_and_its_text_stays_inside(
    web: Web, counter: int, style: str, height: int, label: str
) -> None:
    web.page.goto(f"http://127.0.0.1:{counter}/badge/{style}.svg?style={style}&label={label}")
    (left, top, right, bottom), *texts = web.page.evaluate("""() => {
        const root = document.documentElement;
        const box = (element) => {
            const { left, top, right, bottom } = element.getBoundingClientRect();
            return [left, top, right, bottom];
        };
        return [root, ...root.querySelectorAll("text")].map(box);
    }""")
    assert bottom - top == height
    assert texts
    for text in texts:
        assert left < text[0]
        assert text[2] < right
        # A line is higher than its letters and figures are, by a pixel or two on each side.
        assert top - 1 < text[1]
        assert text[3] < bottom + 2
