"""A real Chromium, a site of its own origin, and a running counter.

Tests here are skipped where there is no Chromium. The names under `.test` lead to this machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support.servers import GunicornServer, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Site:
    """A small web site: what stands at each path, and how many other paths it gives the same page."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, dict[str, str]]] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                html, fields = site.pages.get(self.path.partition("?")[0], site.pages["*"])
                body = html.encode()
                self.send_response(200)
                for name, value in {"Content-Type": "text/html; charset=utf-8", **fields}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End the server."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def put(self, html: str, path: str = "*", **fields: str) -> None:
        """Put a page at a path, at all other paths with "*"; `Some_Field="..."` is a header field."""
        self.pages[path] = html, {name.replace("_", "-"): value for name, value in fields.items()}


class Web(NamedTuple):
    """What a test of a page works with."""

    page: Page
    site: Site
    counter: str  # the counter's origin, as the site's pages name it
    visits: Callable[[str], int]  # the count of a page
    snippet: str

    def url(self, path: str = "/", host: str = "blog.test") -> str:
        """Return the address of a path of the site."""
        return f"http://{host}:{self.site.port}{path}"

    def wait_for_visits(self, page: str, number: int) -> None:
        """Wait until a page has this count; fail if it has more."""
        wait_until(lambda: self.visits(page) >= number, f"{page} has {number} visits")
        assert self.visits(page) == number

    def wait_for_text(self, text: str, selector: str = "#n") -> None:
        """Wait until an element shows a text."""
        self.page.wait_for_function("([s, t]) => document.querySelector(s)?.textContent === t", arg=[selector, text])


class Unsteered:
    """A Chromium of its own that is not steered: it hides tabs and prepares pages, which a steered one never does."""

    def __init__(self, profile: Path, url: str) -> None:
        assert CHROMIUM is not None
        self._port_file = profile / "DevToolsActivePort"
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                *("--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-popup-blocking"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}"),
                # Else the port makes it a browser that a program runs.
                "--disable-blink-features=AutomationControlled",
                *("--host-resolver-rules=MAP *.test 127.0.0.1", url),
            ],
            stderr=subprocess.DEVNULL,
        )

    def show(self, url: str) -> None:
        """Bring the tab of an address to the front."""
        port = self._port_file.read_text(encoding="ascii").split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            [tab] = [each["id"] for each in json.load(answer) if each["url"] == url]
        urllib.request.urlopen(f"http://127.0.0.1:{port}/json/activate/{tab}").close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--host-resolver-rules=MAP *.test 127.0.0.1",
                "--disable-blink-features=AutomationControlled",
            ],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


@pytest.fixture
def unsteered(tmp_path: Path) -> Iterator[Callable[[str], Unsteered]]:
    """Start a Chromium that no test steers, at an address."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    started: list[Unsteered] = []

    def start(url: str) -> Unsteered:
        started.append(Unsteered(tmp_path / "chromium", url))
        return started[-1]

    yield start
    for each in started:
        each.process.terminate()
        each.process.wait()


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a counter that runs for all tests; each has pages of its own."""
    server = GunicornServer(tmp_path_factory.mktemp("counter"), "-w", "1", VISITS_PROFILE="basic")
    try:
        yield server.start().port
    finally:
        server.stop()
    assert "Traceback" not in server.log


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor who was never here before."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def web(context: BrowserContext, counter: int) -> Iterator[Web]:
    """A site, whose every page has the snippet and shows its count, and a visitor; no script error is left unseen."""
    site = Site()
    origin = f"http://counter.test:{counter}"
    snippet = f'<script defer src="{origin}/count.js"></script>'
    site.put(f'<!doctype html><title>t</title>{snippet}<p>read <span id="n" data-visits>many</span> times</p>')

    def visits(page: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{counter}/visits?page={page}") as answer:
            return int(json.load(answer)["visits"].popitem()[1])

    errors: list[Any] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - playwright marks what it is given
    try:
        yield Web(page, site, origin, visits, snippet)
        assert errors == []
    finally:
        page.close()
        site.close()
