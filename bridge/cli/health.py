"""health: one row a component, each with what to do; asked of the database alone."""

from __future__ import annotations

import sys

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.database import open_database
from bridge.cli.tables import ago, json_option, print_json, print_table
from bridge.queries import monitoring
from bridge.records import shown

__all__ = ["health_command"]

_STYLES = {"healthy": "green", "degraded": "yellow", "failing": "bold red", "inactive": "dim"}
_COLUMNS = ("component", "subject", "status", "found", "remedy", "last_run", "next_run", "error_count", "success_rate", "value")


@click.command("health")
@json_option
def health_command(*, as_json: bool) -> None:
    """Say of every component whether it is healthy, and where it is not, what to do. Changes nothing.

    It asks the database alone, as "select * from bridge.health()" does; "bridge doctor" also looks at the broker and at this machine.

    \b
    Examples:
      bridge health
      bridge health --json | jq '.[] | select(.status == "failing")'

    healthy; degraded: jobs still run, worth a look; failing: a person must act; inactive: not in use.

    Exit code: 1 when something is failing, otherwise 0.
    """
    with open_database("bridge health") as connection:
        rows = monitoring.health(connection)
    if as_json:
        print_json(rows)
    elif Console().is_terminal:
        Console().print(_table(rows))
    else:
        print_table(_COLUMNS, [["" if row[name] is None else str(row[name]) for name in _COLUMNS] for row in rows])
    sys.exit(1 if any(row["status"] == "failing" for row in rows) else 0)


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table("component", "status", "what was found, and → what to do", "last", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        status, remedy = str(row["status"]), row["remedy"]
        # As Text: what servers say may hold square brackets, which are markup to rich.
        name = Text(shown(" ".join(str(row[part]) for part in ("component", "subject") if row[part])))
        table.add_row(
            name, Text(status, style=_STYLES.get(status, "")), Text(shown(f"{row['found']}" + (f"\n→ {remedy}" if remedy else ""))),
            ago(row["last_run"]),  # type: ignore[arg-type]
        )  # fmt: skip
    return table
