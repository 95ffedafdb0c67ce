"""tenants: list, enable, disable."""

from __future__ import annotations

import click

from bridge.cli.database import open_database
from bridge.cli.tables import json_option, print_json, print_table
from bridge.queries import tenants

__all__ = ["tenants_command"]


@click.group("tenants", context_settings={"help_option_names": ["-h", "--help"]})
def tenants_command() -> None:
    """Let jobs belong to tenants, each of which meets its own alone.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge tenants enable --key app_metadata.tenant_id
      bridge tenants list
    """


@tenants_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List who has jobs, and how a session says whose request it serves.

    \b
    Examples:
      bridge tenants list --json | jq '.tenants[] | select(.live > 1000)'
    """
    with open_database("bridge tenants list") as connection:
        how, found = tenants.tenancy(connection), tenants.tenants(connection)
    if as_json:
        print_json({"tenancy": how, "tenants": found})
        return
    click.echo("tenants are off" if how is None else f"tenants are on: {_claim(how)}", err=True)
    print_table(("tenant", "live", "ended"), [[one.tenant, str(one.live), str(one.ended)] for one in found], keep=("tenant",))


@tenants_command.command("enable")
@click.option("--claim", default="request.jwt.claims", show_default=True, help='The setting that a session carries, or "role".')
@click.option("--key", default="tenant_id", show_default=True, help="Where the tenant is in the claim's JSON; empty: it is no JSON.")
@json_option
def enable_command(*, claim: str, key: str, as_json: bool) -> None:
    """Let jobs belong to tenants from now on. For the owner of the schema; on a long history it takes a while, and the history waits.

    \b
    Examples:
      bridge tenants enable
      bridge tenants enable --claim role
      bridge tenants enable --claim app.tenant --key ''
    """
    with open_database("bridge tenants enable") as connection:
        tenants.enable(connection, claim, key or None)
        how = tenants.tenancy(connection)
    if as_json:
        print_json(how)
    else:
        click.echo(f"tenants are on: {_claim(how)}" if how else "tenants are off")


@tenants_command.command("disable")
@json_option
def disable_command(*, as_json: bool) -> None:
    """Let jobs belong to nobody again. What jobs say of their tenant stays.

    \b
    Examples:
      bridge tenants disable
    """
    with open_database("bridge tenants disable") as connection:
        was_on = tenants.disable(connection)
    if as_json:
        print_json({"outcome": "disabled" if was_on else "unchanged"})
    else:
        click.echo("tenants are off" if was_on else "tenants were off")


def _claim(how: tenants.Tenancy) -> str:
    return f"claim={how.claim}" + (f" key={how.key}" if how.key else "")
