"""What the groups of commands share: the service they work with, the pages they are given, the tables they print."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from flask import current_app

from visit_counter import logs
from visit_counter.embedded.shards import running
from visit_counter.errors import VisitCounterError
from visit_counter.journal.witnesses import WAIT_SECONDS, wait_until_there
from visit_counter.model.pages import check_page
from visit_counter.private_files import check_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visit_counter.runtime.service import Service

_POLL_SECONDS = 0.1

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def set_up_log() -> None:
    """Let warnings look as they do in the service's log; click calls it before a command."""
    logs.set_up(logging.WARNING)


class Page(click.ParamType[str]):
    """A page id, checked by the same rules as in a request."""

    name = "page"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the page, or fail with what is wrong with it."""
        try:
            return check_page(value)
        except VisitCounterError as error:
            self.fail(str(error), param, ctx)


def service_of_app() -> Service:
    """Return the service as it is, with nothing opened."""
    service: Service = current_app.extensions["visit_counter"]
    return service


@contextmanager
def opened_service() -> Iterator[Service]:
    """Give the service with its journal open and its shards running; errors become one clear line."""
    service = service_of_app()
    try:
        if service.settings.has.has_shards:
            for warning in check_data_dir(service.settings.data_dir):
                click.echo(warning, err=True)
        begin = _may_begin(service)
        with running(service.settings):
            service.open(begin=begin)
            _wait_for_absent(service)
            yield service
    except VisitCounterError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.strerror}: {error.filename or service.settings.data_dir}") from None
    finally:
        service.close()


def _wait_for_absent(service: Service) -> None:
    """Wait while a running service writes segments anew that were removed: until then nothing here can be known."""
    deadline = time.monotonic() + WAIT_SECONDS
    while service.buffer is not None and service.buffer.absent and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        service.follow()


def _may_begin(service: Service) -> bool:
    """Tell whether a command may make a journal. It waits first, in case a running service is to put its own back."""
    journal = service.buffer.journal if service.buffer else None
    if journal is None or journal.is_there():
        return False
    notice = f"there is no journal in {journal.path}; waiting up to {WAIT_SECONDS:.0f} s for a service to put it back"
    click.echo(notice, err=True)
    return not wait_until_there(journal)


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
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


def print_fields(fields: dict[str, Any]) -> None:
    """Print one field a line."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {_text(value)}")


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
