"""The commands of `visits`: count, read and flush visits, inspect the journal, ask why a visit is not counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from flask.cli import AppGroup

from visit_counter.cli import reports
from visit_counter.cli.shared import Page, as_json, opened_service, print_fields, print_rows, set_up_log
from visit_counter.cli.why import Address, ask_why

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_COUNT = 10**9

visits = AppGroup("visits", help="Count, read and flush visits; inspect the journal.", callback=set_up_log)


@visits.command("hit")
@click.argument("page", type=Page())
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, MAX_COUNT), help="How many visits.")
@as_json
def hit(page: str, count: int, as_json: bool) -> None:
    """Count visits of PAGE and print its new count."""
    with opened_service() as service:
        answer = service.counter.record(page, count)
    print_rows([{"page": page, **json.loads(answer.to_json())}], as_json)


@visits.command("get")
@click.argument("pages", metavar="PAGE...", nargs=-1, required=True, type=Page())
@as_json
def get(pages: Sequence[str], as_json: bool) -> None:
    """Print the count of each PAGE."""
    with opened_service() as service:
        answers = [service.counter.count(page) for page in pages]
    print_rows(
        [
            {"page": page, "visits": answer.visits, "served_via": answer.served_via}
            for page, answer in zip(pages, answers, strict=True)
        ],
        as_json,
    )


@visits.command("flush")
@as_json
def flush(as_json: bool) -> None:
    """Bring all pending visits into the shards now."""
    with opened_service() as service:
        result = service.flush()
    if result is None:
        raise click.ClickException(
            f"the profile {service.settings.profile} has no journal, so there is nothing to flush"
        )
    row = {"visits": result.visits, "pages": result.pages, "seconds": result.seconds, "error": result.error}
    print_rows([row], as_json)
    if result.error:
        raise SystemExit(1)


@visits.command("why")
@click.argument("page", type=Page())
@click.option("--address", type=Address(), help="The visitor's address; this machine's without it.")
@click.option("--origin", default="", help="The site whose page sends the visit, like https://example.org.")
@click.option("--user-agent", default="", help="What the visitor's browser calls itself; it matters for repeats.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the service answers.")
@as_json
def why(page: str, url: str, as_json: bool, **visitor: Any) -> None:
    """Tell whether a visit of PAGE would be counted, and if not by which rule.

    It asks the running service, which alone knows what each client has sent.
    """
    found = ask_why(url, page, **visitor)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_fields(found)


@visits.command("journal")
@click.option("--acknowledge", is_flag=True, help="Say that you have seen the damage: it no longer degrades /health.")
@as_json
def journal(acknowledge: bool, as_json: bool) -> None:
    """Show the journal: segments, pending visits, watermarks, the last flush, damage and who has acknowledged it."""
    with opened_service() as service:
        if acknowledge:
            reports.acknowledge_damage(service)
        report = reports.journal(service)
    if report is None:
        raise click.ClickException(f"the profile {service.settings.profile} has no journal")
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    segments, watermarks = report.pop("segments"), report.pop("watermarks")
    damage, acknowledged = report.pop("damage"), report.pop("acknowledged")
    print_fields(report)
    click.echo()
    print_rows(segments, as_json=False)
    click.echo()
    print_rows(watermarks, as_json=False)
    for note in damage:
        by = acknowledged.get(note)
        click.secho(f"damage: {note}" + (f" (acknowledged {by})" if by else ""), fg=None if by else "red")
