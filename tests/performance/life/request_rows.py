"""Rows of requests asked as fast as they are answered: header fields, pages, connections, a whole life with flushes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.performance import wrk
from tests.performance.life.bench import Line, Turn, at_least, at_most, median
from tests.performance.wrk import Requests
from tests.support import processes

if TYPE_CHECKING:
    from tests.performance.life.bench import Bench

_TRIES = 30
# wrk opens its connections all at once, and a worker that is awake may take nearly all of them.
_LEAST_SHARE = 0.4


def visitors(bench: Bench) -> list[Line]:
    """POST with header fields as visitors send them, against webdis, and against our own with identical fields."""
    sent = Requests(fields="visitor")
    found = bench.in_turn(
        {
            "ours": bench.side(bench.ours, sent),
            "webdis": bench.side(bench.webdis, sent._replace(method="GET")),
            "identical": bench.side(bench.ours, Requests()),
        }
    )
    ours, webdis, identical = found["ours"], found["webdis"], found["identical"]
    more = f" ({ours}; webdis {webdis}; identical {identical})"
    return [
        at_least("POST with visitors' fields against webdis INCR", ours.per_second / webdis.per_second, 1.5, more=more),
        at_least("the same against identical fields", ours.per_second / identical.per_second, 0.85),
    ]


def zipf(bench: Bench) -> list[Line]:
    """POST to 100,000 pages, Zipf, a flush in the turn, against webdis; both kinds of fields."""
    before, seconds = bench.effort.zipf
    lines = []
    for fields in ("generator", "visitor"):
        sent = Requests(fields=fields, pages="zipf")
        found = bench.in_turn(
            {
                f"ours, {fields}": bench.side(bench.ours, sent, seconds, before),
                f"webdis, {fields}": bench.side(bench.webdis, sent._replace(method="GET"), seconds, min(before, 5)),
            }
        )
        ours, webdis = found.values()
        ratio = ours.per_second / webdis.per_second
        figure = f"POST to 100,000 pages (Zipf), {fields}'s fields, against webdis INCR"
        lines += [
            at_least(figure, ratio, 1.5, more=f" ({ours}; webdis {webdis})"),
            at_most("p99 of it", ours.p99_ms, 3, "ms"),
        ]
    return lines


def closing(bench: Bench) -> list[Line]:
    """A connection for each request, against webdis."""
    sent = Requests(fields="closing")
    found = bench.in_turn(
        {
            "ours": bench.side(bench.ours, sent),
            "webdis": bench.side(bench.webdis, sent._replace(method="GET")),
        }
    )
    ours, webdis = found.values()
    ratio = ours.per_second / webdis.per_second
    return [at_least("a connection for each request, against webdis", ratio, 1.2, more=f" ({ours}; webdis {webdis})")]


def whole_life(bench: Bench) -> list[Line]:
    """POST over a time with two flushes, against webdis with an append-only Valkey; p99 against p99 between flushes."""
    before, seconds = bench.effort.life
    quiet: list[Turn] = []

    def ours() -> Turn:
        with bench.ours() as system:
            quiet.append(bench.turn(system, Requests(), before))
            return bench.turn(system, Requests(), seconds, 0)

    append_only = partial(bench.webdis, "yes")
    found = bench.in_turn({"ours": ours, "webdis": bench.side(append_only, Requests("GET"), seconds)})
    whole, webdis = found.values()
    between = median(quiet)
    return [
        at_least(
            f"POST over {seconds:.0f} s with two flushes, against webdis with an append-only Valkey",
            whole.per_second / webdis.per_second,
            2.2,
            more=f" ({whole}; webdis {webdis})",
        ),
        at_most(
            "p99 of it against p99 between flushes", whole.p99_ms / between.p99_ms, 1.3, "x", f" (between: {between})"
        ),
    ]


def floor(bench: Bench) -> list[Line]:
    """CPU of a POST against nginx with a fixed answer, the same turn; both kinds of fields."""
    lines = []
    for fields in ("generator", "visitor"):
        sent = Requests(fields=fields)
        found = bench.in_turn({"ours": bench.side(bench.ours, sent), "nginx": bench.side(bench.nginx, sent)})
        ours, nginx = found.values()
        ratio = ours.cpu_us / nginx.cpu_us
        figure = f"CPU of a POST against nginx `return 200`, {fields}'s fields"
        lines.append(at_most(figure, ratio, 1.25, "x", f" ({ours}; nginx {nginx})"))
    return lines


def first_visits(bench: Bench) -> list[Line]:
    """First visits of pages never seen: CPU of service and shards, and pages a second against webdis."""
    sent = Requests(pages="new")
    found = bench.in_turn(
        {
            "ours": bench.side(bench.ours, sent),
            "webdis": bench.side(bench.webdis, sent._replace(method="GET")),
        }
    )
    ours, webdis = found.values()
    return [
        at_most("first visit of a page never seen, CPU of service and shards", ours.cpu_us, 20, "us"),
        at_least(
            "the same, pages a second against webdis",
            ours.per_second / webdis.per_second,
            1,
            more=f" ({ours}; webdis {webdis})",
        ),
    ]


def divided(bench: Bench) -> list[Line]:
    """CPU of a POST: two workers with the same 16 connections divided, against one worker."""

    def shared() -> Turn:
        with bench.service(workers=2) as (server, shards), bench.own_folder() as folder:
            pids, url = server.worker_pids, server.url
            wrk.run(url, Requests(), 1, folder, core=bench.load_core)
            best = (0.0, Turn(0, 0, 0))
            for _ in range(_TRIES):
                before = [processes.cpu_seconds([pid]) for pid in (*pids, *shards, server.pid)]
                done = wrk.run(url, Requests(), bench.effort.requests, folder, core=bench.load_core)
                after = [processes.cpu_seconds([pid]) for pid in (*pids, *shards, server.pid)]
                used = [now - was for now, was in zip(after, before, strict=True)]
                turn = Turn(done.per_second, done.p99_us / 1e3, sum(used) / done.requests * 1e6)
                best = max(best, (min(used[:2]) / sum(used[:2]), turn), key=lambda one: one[0])
                if best[0] >= _LEAST_SHARE:
                    break
            return best[1]

    found = bench.in_turn({"one": bench.side(bench.ours, Requests()), "two": shared})
    one, two = found.values()
    ratio = two.cpu_us / one.cpu_us
    return [at_most("two workers, the same 16 connections divided", ratio, 1.15, "x", f" (one {one}; two {two})")]
