"""The commands of `shards`: inspect the shards, move pages between them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click
from flask.cli import AppGroup

from visit_counter.cli import reports
from visit_counter.cli.shared import Page, as_json, opened_service, print_rows, service_of_app, set_up_log
from visit_counter.errors import VisitCounterError
from visit_counter.shards.ring import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visit_counter.shards.rebalance.plan import Plan

shards = AppGroup("shards", help="Inspect the shards; move pages between them.", callback=set_up_log)


@shards.command("status")
@as_json
def status(as_json: bool) -> None:
    """Show each shard; exit status 1 if one is down."""
    with opened_service() as service:
        rows = reports.shards(service)
        note = reports.rebalance_note(service)
    if as_json:
        print_rows(rows, as_json)
    else:
        notes = [(row["shard"], row["address"], row.pop("warnings"), row.pop("error")) for row in rows]
        print_rows(rows, as_json)
        for name, address, warnings, error in notes:
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
    """Show the replicas of the shards: visits stay in the journal until every replica not given up has them."""
    with opened_service() as service:
        if forget and not reports.give_up_replica(service, forget):
            raise click.ClickException(f"no shard has had a replica {forget}")
        rows = reports.replicas(service)
    print_rows(rows, as_json)


@shards.command("locate")
@click.argument("pages", metavar="PAGE...", nargs=-1, required=True, type=Page())
@as_json
def locate(pages: Sequence[str], as_json: bool) -> None:
    """Show which partition and shard each PAGE belongs to."""
    service = service_of_app()
    if service.store is None:
        raise click.ClickException(f"the profile {service.settings.profile} has no shards")
    print_rows([reports.location(service.store, page) for page in pages], as_json)


@shards.command("url")
@as_json
def url(as_json: bool) -> None:
    """Print the url of each shard with its password, to connect by hand: valkey-cli -u URL."""
    service = service_of_app()
    try:
        rows = reports.urls(service.settings)
    except VisitCounterError as error:
        raise click.ClickException(str(error)) from None
    print_rows(rows, as_json)
    click.echo("keep these passwords secret: anybody who has one can change and delete counts", err=True)


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

    If it fails or is killed, run it again: it goes on from where it stopped.
    """
    with opened_service() as service:
        if not service.settings.has.shares_pages:
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
    print_rows(rows, as_json)
    if not as_json:
        pages = sum(row["pages"] for row in rows)
        click.echo(f"{len(plan.moves):,} of {PARTITIONS:,} partitions, {pages:,} pages to move")
    for note in plan.notes():
        click.secho(f"warning: {note}", fg="yellow", err=True)
