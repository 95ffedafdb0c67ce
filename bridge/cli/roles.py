"""roles: list, rights, tasks, allow, disallow."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.database import open_database
from bridge.cli.tables import cell, dry_run_option, json_option, print_json, print_table
from bridge.errors import NotFoundError
from bridge.queries import roles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.queries.roles import Right

__all__ = ["roles_command"]

_ROLES = ("producer", "worker", "operator", "viewer", "tenant")


@click.group("roles", context_settings={"help_option_names": ["-h", "--help"]})
def roles_command() -> None:
    """Say who may do what, and which tasks a role may enqueue.

    The database is BRIDGE_DATABASE_URL, else that of the stack that "bridge up" runs here.

    \b
    Examples:
      bridge roles list
      bridge roles rights --role viewer
      bridge roles allow shop_web 'orders.*'
    """


@roles_command.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """List the bridge's roles and who has been granted them.

    \b
    Examples:
      bridge roles list --json | jq '.[] | select(.login) | .member'
    """
    with open_database("bridge roles list") as connection:
        _print(("role", "member", "login", "direct"), roles.members(connection), as_json=as_json)


@roles_command.command("rights")
@click.option("--role", type=click.Choice([*_ROLES, "public"]), help="Only what this one may.  [default: all]")
@json_option
def rights_command(*, role: str | None, as_json: bool) -> None:
    """List what each role may do with each function and table, as Postgres keeps it.

    \b
    Examples:
      bridge roles rights
      bridge roles rights --role producer
      bridge roles rights --json | jq '.[] | select(.role == "public")'
    """
    with open_database("bridge roles rights") as connection:
        found = [right for right in roles.rights(connection) if role is None or right.role.removeprefix("bridge_") == role]
    if as_json:
        print_json(found)
        return
    columns = _ROLES if role is None else (role,)
    print_table(("privilege", "object", *columns), _matrix(found, columns), keep=("object",))


@roles_command.command("tasks")
@json_option
def tasks_command(*, as_json: bool) -> None:
    """List which tasks roles may enqueue. A role that is not here may enqueue all.

    \b
    Examples:
      bridge roles tasks
    """
    with open_database("bridge roles tasks") as connection:
        _print(("role", "pattern", "role_exists", "changed_at"), roles.task_rules(connection), as_json=as_json)


@roles_command.command("allow")
@click.argument("role")
@click.argument("pattern")
@dry_run_option
@json_option
def allow_command(*, role: str, pattern: str, dry_run: bool, as_json: bool) -> None:
    """Allow ROLE, a login or a role of the database, to enqueue tasks like PATTERN. Its first rule forbids all others.

    \b
    Examples:
      bridge roles allow shop_web 'orders.*'
      bridge roles allow shop_web mail.send --dry-run
    """
    with open_database("bridge roles allow") as connection, connection.transaction(force_rollback=dry_run):
        outcome = roles.allow_task(connection, role, pattern)
    _say({"role": role, "pattern": pattern, "outcome": outcome}, as_json=as_json, dry_run=dry_run)


@roles_command.command("disallow")
@click.argument("role")
@click.argument("pattern")
@dry_run_option
@json_option
def disallow_command(*, role: str, pattern: str, dry_run: bool, as_json: bool) -> None:
    """Take back what "allow" said. A role whose last rule goes may enqueue all tasks again.

    \b
    Examples:
      bridge roles disallow shop_web 'orders.*'
    """
    with open_database("bridge roles disallow") as connection, connection.transaction(force_rollback=dry_run):
        if not roles.disallow_task(connection, role, pattern):
            raise NotFoundError(f"role {role} has no rule {pattern!r}", '"bridge roles tasks" shows those that are')
    _say({"role": role, "pattern": pattern, "outcome": "removed"}, as_json=as_json, dry_run=dry_run)


def _matrix(found: Sequence[Right], columns: Sequence[str]) -> list[list[str]]:
    """A row a privilege and object, a column a role."""
    rows = []
    for (named, privilege), rights in groupby(found, key=lambda right: (right.object, right.privilege)):
        having = {right.role.removeprefix("bridge_") for right in rights}
        rows.append([privilege.lower(), named, *("yes" if column in having else "" for column in columns)])
    return rows


def _say(result: dict[str, Any], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(result)
    else:
        click.echo(f"{'dry run, nothing is changed: ' if dry_run else ''}{' '.join(map(str, result.values()))}")


def _print(names: Sequence[str], rows: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print_table(names, [[cell(getattr(row, name)) for name in names] for row in rows], keep=("role", "pattern"))
