"""Badges: a small picture of a count, as text in SVG. Pure.

The styles `flat`, `flat-square` and `for-the-badge` have the measures of the badges that READMEs show beside them;
`digits` is a row of figures, as the counters of the first web pages had. A badge says its text to a screen reader
once: what is drawn is hidden from it.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape
from typing import NamedTuple

from visit_counter.errors import BadgeError

STYLES = ("flat", "flat-square", "for-the-badge", "digits")
MAX_LABEL_LETTERS = 80

_COLORS = {
    "brightgreen": "#4c1",
    "green": "#97ca00",
    "yellow": "#dfb317",
    "yellowgreen": "#a4a61d",
    "orange": "#fe7d37",
    "red": "#e05d44",
    "blue": "#007ec6",
    "lightgrey": "#9f9f9f",
    "grey": "#555",
    "black": "#222",
    "purple": "#94398d",
}
_HEX = re.compile(r"#?([0-9A-Fa-f]{3}|[0-9A-Fa-f]{6})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FONT = "Verdana,Geneva,DejaVu Sans,sans-serif"
_FIGURES_FONT = "DejaVu Sans Mono,Menlo,Consolas,monospace"
# How wide the characters from U+0020 to U+007E are in Verdana, in units of 1/2048 of the font size.
_WIDTHS = (
    *(720, 806, 940, 1676, 1302, 2204, 1488, 550, 930, 930, 1302, 1676, 745, 930, 745, 930),
    *(1302, 1302, 1302, 1302, 1302, 1302, 1302, 1302, 1302, 1302, 930, 930, 1676, 1676, 1676, 1117),
    *(2048, 1400, 1404, 1430, 1578, 1295, 1177, 1588, 1539, 862, 931, 1419, 1140, 1726, 1532, 1612),
    *(1235, 1612, 1424, 1400, 1262, 1499, 1400, 2025, 1403, 1260, 1403, 930, 930, 930, 1676, 1302),
    *(1302, 1230, 1276, 1067, 1276, 1220, 720, 1276, 1296, 562, 705, 1212, 562, 1992, 1296, 1243),
    *(1276, 1276, 874, 1067, 807, 1296, 1212, 1676, 1212, 1212, 1076, 1300, 930, 1300, 1676),
)
_OTHER_WIDTH = 1350
_WIDE_WIDTH = 2048


class Look(NamedTuple):
    """What a badge looks like, whatever its number; `color` is a colour of CSS."""

    label: str = "visits"
    color: str = "#007ec6"
    style: str = "flat"


def look_of(label: str | None, color: str | None, style: str | None) -> Look:
    """Return the look that these texts ask for, each None for the usual. Raises BadgeError with what is allowed."""
    default = Look()
    label = default.label if label is None else label.strip()
    if len(label) > MAX_LABEL_LETTERS or _CONTROL.search(label):
        raise BadgeError(f"label must be at most {MAX_LABEL_LETTERS} characters, none of them a control character")
    found = _HEX.fullmatch(color) if color else None
    if color and not found and color not in _COLORS:
        raise BadgeError(f"color must be one of {', '.join(_COLORS)}, or 3 or 6 hexadecimal digits")
    if style and style not in STYLES:
        raise BadgeError(f"style must be one of {', '.join(STYLES)}")
    shown = f"#{found[1].lower()}" if found else _COLORS.get(color or "", default.color)
    return Look(label, shown, style or default.style)


def draw(look: Look, message: str) -> bytes:
    """Return a badge as an SVG document in UTF-8."""
    if look.style == "digits":
        return _draw_digits(look, message)
    if look.style == "for-the-badge":
        return _draw_loud(look, message)
    return _draw_flat(look, message)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return how wide a text is, in pixels, in Verdana of `size` pixels; about that for what is not ASCII."""
    units = sum(_character_width(character) for character in text)
    # Verdana Bold is wider by about this much.
    return units * size / 2048 * (1.13 if bold else 1.0)


def _character_width(character: str) -> int:
    code = ord(character)
    if 0x20 <= code <= 0x7E:
        return _WIDTHS[code - 0x20]
    if unicodedata.combining(character):
        return 0
    return _WIDE_WIDTH if unicodedata.east_asian_width(character) in "WF" else _OTHER_WIDTH


def _start(width: float, height: int, look: Look, message: str) -> str:
    said = escape(f"{look.label}: {message}" if look.label else message)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" role="img" aria-label="{said}">'
        f"<title>{said}</title>"
    )


def _text_on(color: str) -> str:
    """Return black or white, whichever is read better on a colour: by its brightness, as WCAG 2 weighs its parts."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
    return "#fff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 176 else "#222"


def _draw_flat(look: Look, message: str) -> bytes:
    height, is_round = 20, look.style == "flat"
    left = round(text_width(look.label, 11)) + 10 if look.label else 0
    right = round(text_width(message, 11)) + 10
    width = left + right
    parts = [_start(width, height, look, message)]
    if is_round:
        parts.append(
            '<linearGradient id="s" x2="0" y2="100%"><stop offset="0" stop-color="#bbb" stop-opacity=".1"/>'
            '<stop offset="1" stop-opacity=".1"/></linearGradient>'
            # A name of its own for each width, since a page may hold several badges inline.
            f'<clipPath id="r{width}"><rect width="{width}" height="{height}" rx="3"/></clipPath>'
            f'<g clip-path="url(#r{width})">'
        )
    else:
        parts.append("<g>")
    parts.append(f'<rect width="{left}" height="{height}" fill="#555"/>')
    parts.append(f'<rect x="{left}" width="{right}" height="{height}" fill="{look.color}"/>')
    if is_round:
        parts.append(f'<rect width="{width}" height="{height}" fill="url(#s)"/>')
    parts.append(f'</g><g aria-hidden="true" text-anchor="middle" font-family="{_FONT}" font-size="11">')
    for text, at, size, color in ((look.label, 0, left, "#fff"), (message, left, right, _text_on(look.color))):
        if text:
            place = f'x="{at + size / 2:g}" textLength="{size - 10}"'
            if is_round and color == "#fff":
                parts.append(f'<text {place} y="15" fill="#010101" fill-opacity=".3">{escape(text)}</text>')
            parts.append(f'<text {place} y="14" fill="{color}">{escape(text)}</text>')
    return "".join((*parts, "</g></svg>")).encode()


def _draw_loud(look: Look, message: str) -> bytes:
    height, spacing = 28, 1.25
    label, message = look.label.upper(), message.upper()
    inner = [text_width(label, 10) + spacing * len(label), text_width(message, 10, bold=True) + spacing * len(message)]
    left, right = round(inner[0]) + 24 if label else 0, round(inner[1]) + 24
    parts = [
        _start(left + right, height, look, message),
        f'<rect width="{left}" height="{height}" fill="#555"/>',
        f'<rect x="{left}" width="{right}" height="{height}" fill="{look.color}"/>',
        f'<g aria-hidden="true" text-anchor="middle" font-family="{_FONT}" font-size="10">',
    ]
    if label:
        parts.append(f'<text x="{left / 2:g}" y="18" textLength="{left - 24}" fill="#fff">{escape(label)}</text>')
    parts.append(
        f'<text x="{left + right / 2:g}" y="18" textLength="{right - 24}" fill="{_text_on(look.color)}"'
        f' font-weight="bold">{escape(message)}</text></g></svg>'
    )
    return "".join(parts).encode()


def _draw_digits(look: Look, message: str) -> bytes:
    box, height = 16, 24
    shown = message.rjust(6, "0") if message.isdigit() else message
    parts = [
        _start(box * len(shown) + 2, height, look, message),
        f'<rect width="{box * len(shown) + 2}" height="{height}" rx="3" fill="#111"/>',
        f'<g aria-hidden="true" text-anchor="middle" font-family="{_FIGURES_FONT}" font-size="16" font-weight="bold">',
    ]
    color = "#fff" if look.color == Look().color else look.color
    for at, character in enumerate(shown):
        x = box * at + 1
        parts.append(f'<rect x="{x + 1}" y="2" width="{box - 2}" height="{height - 4}" rx="2" fill="#2b2b2b"/>')
        parts.append(f'<text x="{x + box / 2:g}" y="18" fill="{color}">{escape(character)}</text>')
    return "".join((*parts, "</g></svg>")).encode()
