"""The flask commands: thin wrappers over the service and `reports`; they need no running service."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from visit_counter import logs
from visit_counter.cli import reports
from visit_counter.embedded.shards import running
from visit_counter.errors import VisitCounterError
from visit_counter.model.pages import check_page
from visit_counter.private_files import check_data_dir
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flask import Flask

    from visit_counter.runtime.service import Service
    from visit_counter.shards.rebalance.plan import Plan

MAX_COUNT = 10**9


def _set_up_log() -> None:
    """Let warnings look as they do in the service's log; click calls it before a command."""
    logs.set_up(logging.WARNING)


visits = AppGroup("visits", help="Count, read and flush visits; look at the journal.", callback=_set_up_log)
shards = AppGroup("shards", help="Look at the shards; move pages between them.", callback=_set_up_log)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def register(app: Flask) -> None:
    """Add the commands to the application."""
    app.cli.add_command(visits)
    app.cli.add_command(shards)


class _Page(click.ParamType[str]):
    """A page id, checked by the same rules as in a request."""

    name = "page"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_page(value)
        except VisitCounterError as error:
            self.fail(str(error), param, ctx)


@visits.command("hit")
@click.argument("page", type=_Page())
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, MAX_COUNT), help="How many visits.")
@as_json
def hit(page: str, count: int, as_json: bool) -> None:
    """Count visits of PAGE and print its new count."""
    with _service() as service:
        answer = service.counter.record(page, count)
    _print([{"page": page, **json.loads(answer.to_json())}], as_json)


@visits.command("get")
@click.argument("pages", metavar="PAGE...", nargs=-1, required=True, type=_Page())
@as_json
def get(pages: Sequence[str], as_json: bool) -> None:
    """Print the count of each PAGE."""
    with _service() as service:
        answers = [service.counter.count(page) for page in pages]
    _print(
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
    with _service() as service:
        result = service.flush()
    if result is None:
        raise click.ClickException(f"the profile {service.settings.profile} has no write buffer to flush")
    row = {"visits": result.visits, "pages": result.pages, "seconds": result.seconds, "error": result.error}
    _print([row], as_json)
    if result.error:
        raise SystemExit(1)


@visits.command("journal")
@click.option("--acknowledge", is_flag=True, help="Say that you have seen the damage: it no longer degrades /health.")
@as_json
def journal(acknowledge: bool, as_json: bool) -> None:
    """Show the journal: segments, pending visits, watermarks, the last flush, damage and who has acknowledged it."""
    with _service() as service:
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
    _print_fields(report)
    click.echo()
    _print(segments, as_json=False)
    click.echo()
    _print(watermarks, as_json=False)
    for note in damage:
        by = acknowledged.get(note)
        click.secho(f"damage: {note}" + (f" (acknowledged {by})" if by else ""), fg=None if by else "red")


@shards.command("status")
@as_json
def status(as_json: bool) -> None:
    """Show each shard; exit status 1 if one is down."""
    with _service() as service:
        rows = reports.shards(service)
        note = reports.rebalance_note(service)
    if as_json:
        _print(rows, as_json)
    else:
        told = [(row["shard"], row["address"], row.pop("warnings"), row.pop("error")) for row in rows]
        _print(rows, as_json)
        for name, address, warnings, error in told:
            for warning in [error] if error else warnings:
                click.secho(
                    f"{'down' if error else 'warning'}: {name}, {address}: {warning}", fg="red" if error else "yellow"
                )
    if note:
        click.echo(note, err=True)
    if not all(row["up"] for row in rows):
        raise SystemExit(1)


@shards.command("replicas")
@click.option("--forget", metavar="ADDRESS", help="Give up a replica that is away and will never be promoted.")
@as_json
def replicas(forget: str | None, as_json: bool) -> None:
    """Show the replicas of the shards: what is flushed is kept until all of them, but those given up, have it."""
    with _service() as service:
        if forget and not reports.give_up_replica(service, forget):
            raise click.ClickException(f"no shard has had a replica {forget}")
        rows = reports.replicas(service)
    _print(rows, as_json)


@shards.command("locate")
@click.argument("pages", metavar="PAGE...", nargs=-1, required=True, type=_Page())
@as_json
def locate(pages: Sequence[str], as_json: bool) -> None:
    """Show which partition and shard each PAGE belongs to."""
    service: Service = current_app.extensions["visit_counter"]
    if service.store is None:
        raise click.ClickException(f"the profile {service.settings.profile} has no shards")
    _print([reports.location(service.store, page) for page in pages], as_json)


@shards.command("url")
@as_json
def url(as_json: bool) -> None:
    """Print the url of each shard with its password, to connect by hand: valkey-cli -u URL."""
    service: Service = current_app.extensions["visit_counter"]
    try:
        rows = reports.urls(service.settings)
    except VisitCounterError as error:
        raise click.ClickException(str(error)) from None
    _print(rows, as_json)
    click.echo("keep the passwords in them secret: whoever has one can change and delete counts", err=True)


@shards.command("rebalance")
@click.option("--dry-run", is_flag=True, help="Only show how many partitions and pages would go from where to where.")
@click.option(
    "--from",
    "former",
    metavar="LIST",
    help="Shards that VISITS_SHARDS no longer has, in its format; needed only where they have a password or options.",
)
@click.option("--set-aside", is_flag=True, help="Keep counts that are in the way under visits:{N}:stray:...")
@as_json
def rebalance(dry_run: bool, former: str | None, set_aside: bool, as_json: bool) -> None:
    """Move pages to the shards that VISITS_SHARDS gives them to; the service may run meanwhile.

    Killed or failed, it is started again and goes on from where it stopped.
    """
    with _service() as service:
        if service.settings.profile != "sharded":
            raise click.ClickException("only the profile sharded has more than one shard")
        for trouble in reports.flush_troubles(service):
            click.secho(f"warning: the last flush failed: {trouble}", fg="yellow", err=True)
        work = reports.rebalance_of(service.settings, former)
        if dry_run:
            _print_plan(work.plan(), as_json)
            return
        with ExitStack() as stack:
            bars: list[Any] = []

            def progress(number: int) -> None:
                for bar in bars:
                    bar.update(number)

            def begin(plan: Plan) -> None:
                _print_plan(plan, as_json)
                if plan.moves and not as_json:
                    bar = click.progressbar(length=len(plan.moves), label="partitions", show_pos=True)
                    bars.append(stack.enter_context(bar))

            work.run(begin, progress, set_aside=set_aside)
    if not as_json:
        click.echo("every page is on its shard")


def _print_plan(plan: Plan, as_json: bool) -> None:
    rows = plan.rows()
    _print(rows, as_json)
    if not as_json:
        pages = sum(row["pages"] for row in rows)
        click.echo(f"{len(plan.moves):,} of {PARTITIONS:,} partitions, {pages:,} pages to move")
    for note in plan.notes():
        click.secho(f"warning: {note}", fg="yellow", err=True)


@contextmanager
def _service() -> Iterator[Service]:
    """Give the service with its journal open and its shards running; errors become one clear line."""
    service: Service = current_app.extensions["visit_counter"]
    try:
        if service.settings.profile != "basic":
            for warning in check_data_dir(service.settings.data_dir):
                click.echo(warning, err=True)
        with running(service.settings):
            service.open()
            yield service
    except VisitCounterError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.strerror}: {error.filename or service.settings.data_dir}") from None
    finally:
        service.close()


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows with the same keys: a table for people, or JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        return
    table = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    numeric = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in rows[0].values()]
    for line in table:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _print_fields(fields: dict[str, Any]) -> None:
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {_text(value)}")


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
