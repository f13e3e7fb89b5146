"""What a running service answers to GET /why, for the command `flask visits why`."""

from __future__ import annotations

import json
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import click

from visit_counter.model.clients import parse_address

_SECONDS = 10.0


def ask_why(url: str, page: str, *, address: str | None, origin: str, user_agent: str) -> dict[str, Any]:
    """Return what the service at a url says of a visit of this page, from this address, origin and browser.

    Raises ClickException if it does not say.
    """
    # An empty User-Agent is one, too: without it urllib would send its own.
    fields = {"User-Agent": user_agent}
    if address:
        fields["X-Forwarded-For"] = address
    if origin:
        fields["Origin"] = origin
    found = _get(f"{url.rstrip('/')}/why?page={quote(page, safe='')}", fields)
    if address and parse_address(found["client"]) != parse_address(address):
        raise click.ClickException(
            f"the service takes {found['client']} for the client, not {address}: it believes no X-Forwarded-For"
            " from here; ask from a machine that is in VISITS_TRUSTED_PROXIES"
        )
    return found


def _get(url: str, fields: dict[str, str]) -> dict[str, Any]:
    try:
        with urlopen(Request(url, headers=fields), timeout=_SECONDS) as answer:  # noqa: S310 - the person's own url
            found = json.load(answer)
    except HTTPError as error:
        error.close()
        raise click.ClickException(
            f"{url} answers {error.code} {error.reason}; --url says where the service is"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        raise click.ClickException(f"{url} does not say: {error}; --url says where the service is") from None
    if not isinstance(found, dict) or "client" not in found:
        raise click.ClickException(f"{url} is no answer of this service; --url says where it is")
    return found


class Address(click.ParamType[str]):
    """An IP address."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address, or fail if it is none."""
        try:
            return str(ip_address(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
