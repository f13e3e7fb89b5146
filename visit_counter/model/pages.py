"""What a page id may be: 1 to 255 bytes of UTF-8 with no control characters."""

from __future__ import annotations

import re

from visit_counter.errors import PageError

MAX_PAGE_BYTES = 255

# C0, DEL and C1: none of them can be seen, and tab and newline delimit the journal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def check_page(page: str) -> str:
    """Return the page as given, or raise PageError saying which rule it breaks."""
    if not page:
        raise PageError("the page is empty; it must be 1 to 255 bytes")
    try:
        size = len(page.encode())
    except UnicodeEncodeError:
        raise PageError("the page is not valid UTF-8") from None
    if size > MAX_PAGE_BYTES:
        raise PageError(f"the page is {size} bytes; it must be 1 to {MAX_PAGE_BYTES}")
    if found := _CONTROL.search(page):
        raise PageError(f"the page contains the control character U+{ord(found.group()):04X}")
    return page


def decode_page(raw: bytes) -> str:
    """Return the page that these percent-decoded bytes name, or raise PageError."""
    try:
        return check_page(raw.decode())
    except UnicodeDecodeError:
        raise PageError("the page is not valid UTF-8") from None
