"""The script in a page of another origin, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Request, Route

    from tests.browser.conftest import Unsteered, Web

PRIVATE = "Object.defineProperty(navigator, {name!r}, {{value: {value}}})"
HIDDEN = """
  window.hide = true;
  Object.defineProperty(document, "hidden", {get: () => window.hide});
"""


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A path that no other test uses."""
    return "/" + str(request.node.name).removeprefix("test_").replace("[", "-").replace("]", "")


def test_one_line_counts_a_view_and_shows_it(web: Web, name: str) -> None:
    web.page.goto(web.url(name + "?tracking=1#part"))
    web.wait_for_text("1")
    assert web.visits(f"blog.test{name}") == 1


def test_each_reload_counts(web: Web, name: str) -> None:
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.reload()
    web.wait_for_text("2")


def test_a_page_that_comes_back_from_the_history_counts(web: Web, name: str) -> None:
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.goto(web.url(f"{name}/next"))
    web.wait_for_visits(f"blog.test{name}/next", 1)
    web.page.evaluate("history.back()")
    web.wait_for_text("2")
    web.page.evaluate("history.forward()")
    web.wait_for_visits(f"blog.test{name}/next", 2)
    assert web.visits(f"blog.test{name}") == 2


def test_a_single_page_application_counts_each_new_path_once(web: Web, name: str) -> None:
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.evaluate("path => history.pushState({}, '', path)", f"{name}/a")
    web.wait_for_visits(f"blog.test{name}/a", 1)
    for change in ("location.hash = 'x'", "history.pushState({}, '', '?q=1')", "history.replaceState({}, '', '?q=2')"):
        web.page.evaluate(change)
    web.page.evaluate("path => history.replaceState({}, '', path)", f"{name}/b")
    web.page.evaluate("path => history.pushState({}, '', path)", f"{name}/c")
    web.wait_for_visits(f"blog.test{name}/c", 1)
    assert (web.visits(f"blog.test{name}/a"), web.visits(f"blog.test{name}/b")) == (1, 0)
    web.page.evaluate("history.go(-1)")
    web.wait_for_visits(f"blog.test{name}/b", 1)


def test_without_the_navigation_api_the_same_holds(web: Web, name: str) -> None:
    web.page.add_init_script("Object.defineProperty(window, 'navigation', {value: undefined})")
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.evaluate("path => history.pushState({}, '', path)", f"{name}/a")
    web.wait_for_visits(f"blog.test{name}/a", 1)
    web.page.evaluate("history.back()")
    web.wait_for_text("2")


def test_with_data_replace_a_replaced_path_counts(web: Web, name: str) -> None:
    web.site.put(web.snippet.replace("defer", "defer data-replace") + "<span id=n data-visits></span>")
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.evaluate("path => history.replaceState({}, '', path)", f"{name}/b")
    web.wait_for_visits(f"blog.test{name}/b", 1)


def test_a_page_behind_another_one_counts_once_it_is_seen(web: Web, name: str) -> None:
    web.page.add_init_script(HIDDEN)
    web.page.goto(web.url(name), wait_until="networkidle")
    assert web.visits(f"blog.test{name}") == 0
    web.page.evaluate("window.hide = false; document.dispatchEvent(new Event('visibilitychange'))")
    web.wait_for_text("1")
    web.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    web.wait_for_visits(f"blog.test{name}", 1)


def test_a_page_in_a_tab_behind_another_one_counts_once_the_tab_is_shown(
    web: Web, name: str, unsteered: Callable[[str], Unsteered]
) -> None:
    click = """document.links[0].dispatchEvent(new MouseEvent("click", {ctrlKey: true, bubbles: true}))"""
    web.site.put(
        f"""<a href="{name}/front">front</a><script>
            document.addEventListener("visibilitychange", () => {{ location.href = "{name}/behind" }});
            {click}
        </script>""",
        name,
    )
    web.site.put(web.snippet + _tell(web, name), f"{name}/behind")
    chromium = unsteered(web.url(name))
    wait_until(lambda: f"{name}/told?hidden" in web.site.asked, "the page is there, behind another one")
    assert web.visits(f"blog.test{name}/behind") == 0
    chromium.show(web.url(f"{name}/behind"))
    web.wait_for_visits(f"blog.test{name}/behind", 1)


def test_a_page_that_is_prepared_counts_once_it_is_seen(
    web: Web, name: str, unsteered: Callable[[str], Unsteered]
) -> None:
    next_ = f"{name}/next"
    rules = json.dumps({"prerender": [{"source": "list", "urls": [next_], "eagerness": "immediate"}]})
    web.site.put(
        f"""<script type="speculationrules">{rules}</script><script>
            const go = async () => (await (await fetch("{name}/go")).text()) === "go" && (location.href = "{next_}");
            setInterval(go, 50);
        </script>""",
        name,
    )
    web.site.put("wait", f"{name}/go")
    web.site.put(web.snippet + _tell(web, name), next_)
    unsteered(web.url(name))
    wait_until(lambda: f"{name}/told?prerendering" in web.site.asked, "the page is prepared")
    assert web.visits(f"blog.test{next_}") == 0
    web.site.put("go", f"{name}/go")
    web.wait_for_visits(f"blog.test{next_}", 1)
    assert web.site.asked.count(next_) == 1, "the prepared page is the one that is shown"


def _tell(web: Web, name: str) -> str:
    """A script that tells the site how the page is, after what the script that counts would have sent before."""
    return f"""<script>
        addEventListener("load", async () => {{
            const {{ hidden, prerendering }} = document;
            await fetch("{web.counter}/visits?page=x");
            fetch("{name}/told?" + (prerendering ? "prerendering" : hidden ? "hidden" : "seen"));
        }});
    </script>"""


def test_a_page_in_a_frame_shows_its_count_and_adds_nothing(web: Web, name: str) -> None:
    web.site.put(f'<iframe src="{web.url(name)}"></iframe>', f"{name}/outer")
    web.page.goto(web.url(f"{name}/outer"))
    web.page.frame_locator("iframe").locator("#n", has_text="0").wait_for()
    assert web.visits(f"blog.test{name}") == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_site_on_ones_own_machine_counts_only_when_told_to(web: Web, name: str, host: str) -> None:
    web.page.goto(web.url(name, host))
    web.wait_for_text("0")
    web.site.put(web.snippet.replace("defer", "defer data-everywhere") + "<span id=n data-visits></span>")
    web.page.goto(web.url(name, host))
    web.wait_for_text("1")


def test_a_browser_run_by_a_program_counts_nothing(web: Web, name: str) -> None:
    web.page.add_init_script(PRIVATE.format(name="webdriver", value="true"))
    web.page.goto(web.url(name))
    web.wait_for_text("0")


def test_a_file_counts_nothing_and_is_unharmed(web: Web, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(f'{web.snippet}<span id="n" data-visits>many</span>', encoding="utf-8")
    web.page.goto(file.as_uri(), wait_until="networkidle")
    assert web.page.locator("#n").text_content() in ("many", "0")


def test_with_the_service_away_the_page_is_unharmed(web: Web, name: str) -> None:
    web.page.route(f"{web.counter}/visits**", lambda route: route.abort())
    web.page.goto(web.url(name), wait_until="networkidle")
    assert web.page.locator("#n").text_content() == "many"
    web.page.route("**/count.js", lambda route: route.abort())
    web.page.goto(web.url(name), wait_until="networkidle")
    assert web.page.locator("#n").text_content() == "many"


@pytest.mark.parametrize(("status", "body"), [(503, {"status": 503}), (202, {"visits": None, "pending": 3})])
def test_a_count_that_is_not_known_changes_nothing(web: Web, name: str, status: int, body: dict[str, object]) -> None:
    def answer(route: Route) -> None:
        route.fulfill(status=status, body=json.dumps(body), headers={"Access-Control-Allow-Origin": "*"})

    web.page.route(f"{web.counter}/visits/**", answer)
    web.page.goto(web.url(name), wait_until="networkidle")
    assert web.page.locator("#n").text_content() == "many"


def test_a_strict_policy_needs_the_counter_named_and_nothing_else(web: Web, name: str) -> None:
    policy = f"default-src 'none'; script-src {web.counter}; connect-src {web.counter}"
    html = f'{web.snippet}<span id="n" data-visits></span>'
    web.site.put(html, name, Content_Security_Policy=policy)
    web.page.goto(web.url(name))
    web.wait_for_text("1")


def test_a_policy_that_forbids_calls_but_no_images_still_counts_once(web: Web, name: str) -> None:
    policy = f"default-src 'none'; script-src {web.counter}; img-src {web.counter}"
    web.site.put(web.snippet, name, Content_Security_Policy=policy)
    web.page.goto(web.url(name), wait_until="networkidle")
    web.wait_for_visits(f"blog.test{name}", 1)


@pytest.mark.parametrize(("signal", "value"), [("globalPrivacyControl", "true"), ("doNotTrack", "'1'")])
def test_who_asks_for_privacy_is_counted_without_details(web: Web, name: str, signal: str, value: str) -> None:
    sent: list[Request] = []
    web.page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.add_init_script(PRIVATE.format(name=signal, value=value))
    web.page.reload()
    web.wait_for_text("2")
    with_details, without = (request.post_data for request in sent)
    assert sorted(json.loads(with_details or "")) == ["query", "referrer", "width"]
    assert not without


def test_a_visitor_switches_counting_off_and_on_for_himself(web: Web, name: str) -> None:
    web.page.goto(web.url(name + "#visits-off"))
    web.wait_for_text("0")
    web.page.goto(web.url(name + "/other#visits-offered"))
    web.wait_for_text("0")
    web.page.goto(web.url(name + "#visits-on"))
    web.wait_for_text("1")


@pytest.mark.parametrize(
    ("canonical", "page"),
    [
        ("/{}/right", "blog.test/{}/right"),
        ("http://www.blog.test/{}/www", "blog.test/{}/www"),
        ("http://other.test/x", "blog.test/{}"),
    ],
)
def test_the_canonical_link_of_the_same_site_says_which_page_it_is(
    web: Web, name: str, canonical: str, page: str
) -> None:
    web.site.put(
        f'<link rel="canonical" href="{canonical.format(name[1:])}">{web.snippet}<span id=n data-visits></span>'
    )
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    assert web.visits(page.format(name[1:])) == 1


def test_www_is_the_same_site(web: Web, name: str) -> None:
    web.page.goto(web.url(name, "www.blog.test"))
    web.wait_for_text("1")
    assert web.visits(f"blog.test{name}") == 1


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/caf%C3%A9/日本", "/café/日本"),
        ("/100%", "/100%"),
        ("/a%2Fb+c&d=e;f", "/a/b+c&d=e;f"),
        ("/%FF", "/%FF"),
        ("/" + 300 * "x", "/" + 245 * "x"),
        ("/" + 100 * "日", "/" + 81 * "日"),
    ],
)
def test_a_page_of_any_name_is_counted_under_it_and_shown(web: Web, path: str, page: str) -> None:
    web.page.goto(web.url(path))
    web.wait_for_text("1")
    assert web.visits(quote(f"blog.test{page}")) == 1


def test_many_elements_are_filled_with_one_call(web: Web, name: str) -> None:
    calls: list[str] = []
    web.page.on("request", lambda request: calls.append(request.method) if "/visits" in request.url else None)
    pages = [f"blog.test{name}/é {number}" for number in range(50)]
    spans = "".join(f'<span class="o" data-visits="{page}">?</span>' for page in pages)
    web.site.put(f"{web.snippet}<b id=n data-visits></b><i data-visits></i>{spans}")
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    web.page.wait_for_function("[...document.querySelectorAll('.o')].every(o => o.textContent === '0')")
    assert web.page.locator("i").text_content() == "1"
    assert calls == ["POST", "GET"]


@pytest.mark.parametrize("maker", ["busuanzi", "vercount"])
@pytest.mark.parametrize("way", ["defer", "async", ""])
def test_a_page_made_for_another_counter_shows_its_count_when_only_src_changes(
    web: Web, name: str, maker: str, way: str
) -> None:
    hidden = "".join(
        f'<span id="{maker}_container_{figure}" style="display:none">read <b id="{maker}_value_{figure}"></b></span>'
        for figure in ("page_pv", "site_pv", "site_uv")
    )
    script = web.snippet.replace("defer", way)
    web.site.put(f'<!doctype html>{script}<link rel="canonical" href="{name}/right">{10_000 * "<p></p>"}{hidden}')
    web.page.goto(web.url(name))
    web.wait_for_text("1", f"#{maker}_value_page_pv")
    assert web.page.locator(f"#{maker}_container_page_pv").is_visible()
    for figure in ("site_pv", "site_uv"):
        assert not web.page.locator(f"#{maker}_container_{figure}").is_visible()
        assert web.page.locator(f"#{maker}_value_{figure}").text_content() == ""
    assert web.visits(f"blog.test{name}/right") == 1


def test_what_another_counter_would_show_stays_hidden_while_no_count_is_known(web: Web, name: str) -> None:
    web.site.put(
        f'{web.snippet}<i id="busuanzi_container_page_pv" style="display:none"><b id="busuanzi_value_page_pv">-</b></i>'
    )
    web.page.route(f"{web.counter}/visits/**", lambda route: route.abort())
    web.page.goto(web.url(name), wait_until="networkidle")
    assert not web.page.locator("#busuanzi_container_page_pv").is_visible()
    assert web.page.locator("#busuanzi_value_page_pv").text_content() == "-"


def test_a_page_that_is_left_at_once_is_counted(web: Web, name: str) -> None:
    web.site.put(f'{web.snippet}<script defer src="{name}/leave.js"></script>', name)
    web.site.put(f"location.href = {name + '/next'!r}", f"{name}/leave.js", Content_Type="text/javascript")
    web.page.goto(web.url(name), wait_until="commit")
    web.wait_for_visits(f"blog.test{name}/next", 1)
    web.wait_for_visits(f"blog.test{name}", 1)


def test_two_scripts_by_mistake_count_one_visit(web: Web, name: str) -> None:
    web.site.put(f"{web.snippet}{web.snippet}<span id=n data-visits></span>")
    web.page.goto(web.url(name), wait_until="networkidle")
    web.wait_for_text("1")
    assert web.visits(f"blog.test{name}") == 1


def test_with_data_manual_only_the_pages_own_calls_count(web: Web, name: str) -> None:
    web.site.put(web.snippet.replace("defer", "defer data-manual") + "<span id=n data-visits></span>")
    web.page.goto(web.url(name))
    web.wait_for_text("0")
    assert web.page.evaluate("visits.count('download/a b.zip')") == 1
    assert web.visits("download/a b.zip".replace(" ", "%20")) == 1
    assert web.page.evaluate("visits.count()") == 1
    assert web.visits(f"blog.test{name}") == 1


def test_data_page_and_data_query_say_what_is_counted(web: Web, name: str) -> None:
    web.site.put(web.snippet.replace("defer", f'defer data-page="{name}/chosen"') + "<span id=n data-visits></span>")
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    assert web.visits(f"{name}/chosen") == 1
    web.site.put(web.snippet.replace("defer", 'defer data-query="id,lang"') + "<span id=n data-visits></span>")
    web.page.goto(web.url(f"{name}?lang=de&utm_source=x&id=7"))
    web.wait_for_text("1")
    assert web.visits(quote(f"blog.test{name}?lang=de&id=7")) == 1


def test_it_keeps_no_cookie_and_stores_nothing(web: Web, name: str, browser: Browser) -> None:
    web.page.goto(web.url(name))
    web.wait_for_text("1")
    assert browser.contexts[-1].cookies() == []
    assert web.page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_only_the_first_view_of_an_application_tells_where_it_came_from(web: Web, name: str) -> None:
    sent: list[str] = []
    web.page.on("request", lambda request: sent.append(request.post_data or "") if request.method == "POST" else None)
    web.page.goto(web.url(name, "other.test"))
    web.wait_for_text("1")
    web.page.evaluate("url => { location.href = url }", web.url(name))
    web.page.wait_for_url(web.url(name))
    web.wait_for_text("1")
    web.page.evaluate("path => history.pushState({}, '', path)", f"{name}/a")
    web.wait_for_visits(f"blog.test{name}/a", 1)
    web.page.wait_for_load_state("networkidle")
    assert [json.loads(body)["referrer"] for body in sent] == ["", web.url("/", "other.test"), ""]
