"""GET /count.js: the script that a page names in one line. Its source is static/count.js."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import rjsmin
from flask import Blueprint, Response, request

blueprint = Blueprint("script", __name__)

# A change reaches every page within this time; browsers then ask whether it has changed.
_MAX_AGE_SECONDS = 3600


class Script(NamedTuple):
    """The script as it is sent, plain and compressed, and the tag that changes with it."""

    plain: bytes
    compressed: bytes
    etag: str


@cache
def script() -> Script:
    """Return the script without its comments and blanks."""
    source = files("visit_counter.web").joinpath("static/count.js").read_text(encoding="utf-8")
    plain = rjsmin.jsmin(source).encode()
    return Script(plain, gzip.compress(plain, 9, mtime=0), hashlib.sha256(plain).hexdigest()[:16])


@blueprint.get("/count.js")
def count_js() -> Response:
    """Send the script, or 304 if the browser has it."""
    found = script()
    takes_gzip = request.accept_encodings["gzip"] > 0
    response = Response(found.compressed if takes_gzip else found.plain, content_type="text/javascript; charset=utf-8")
    if takes_gzip:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    response.headers["Cache-Control"] = f"public, max-age={_MAX_AGE_SECONDS}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    # Pages of any origin may load it, also those that isolate themselves.
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    response.set_etag(found.etag, weak=takes_gzip)
    response.make_conditional(request)
    return response
