"""jobs workflow, enqueue-flow, add-dependency: jobs that depend on each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import flow_text
from bridge.cli.database import open_database
from bridge.cli.tables import json_option, print_json, print_table
from bridge.flows import add_dependency, enqueue_flow, workflow

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["COMMANDS"]


@click.command("workflow")
@click.argument("identity", metavar="ID")
@click.option("--max-nodes", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Most jobs, those nearest to it.")
@json_option
def workflow_command(*, identity: str, max_nodes: int, as_json: bool) -> None:
    """Show everything that is connected with a job, a batch or a group of Celery's: what it depends on, its chain, group and chord.

    \b
    Examples:
      bridge jobs workflow 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11
      bridge jobs workflow 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 --json | jq '.[] | select(.status == "failed") | .name'
    """
    with open_database("bridge jobs workflow") as connection:
        nodes = workflow(identity, max_nodes=max_nodes, connection=connection)
    flow_text.print_workflow(nodes, as_json=as_json)


@click.command("enqueue-flow")
@click.argument("file", type=click.File())
@json_option
def enqueue_flow_command(*, file: TextIO, as_json: bool) -> None:
    """Enqueue a graph of jobs from a JSON file, all or none; - reads standard input.

    The file has an object whose keys name the jobs; each job is an object of the arguments of bridge.enqueue, and its depends_on names
    other keys, or ids of jobs.

    \b
    Examples:
      echo '{"fetch": {"task": "shop.fetch"}, "report": {"task": "shop.report", "depends_on": ["fetch"]}}' | bridge jobs enqueue-flow -
      bridge jobs enqueue-flow nightly.json --json
    """
    with open_database("bridge jobs enqueue-flow") as connection:
        made = enqueue_flow(_jobs(file), connection=connection)
    if as_json:
        print_json({ref: str(identity) for ref, identity in made.items()})
    else:
        print_table(("job", "id"), [(ref, str(identity)) for ref, identity in made.items()])


def _jobs(file: TextIO) -> dict[str, dict[str, Any]]:
    try:
        found = json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(job, dict) for job in found.values()):
        raise click.BadParameter(f"{file.name} holds no object of objects: give a name to each job")
    return found


@click.command("add-dependency")
@click.argument("child")
@click.argument("parent")
@click.option(
    "--on-parent-failure", type=click.Choice(["cancel", "run", "wait"]), help="Of the child, for all of its parents; as it was without it."
)
@json_option
def add_dependency_command(*, child: str, parent: str, on_parent_failure: str | None, as_json: bool) -> None:
    """Have the job CHILD, which has not begun, wait for the job PARENT as well.

    \b
    Examples:
      bridge jobs add-dependency 0190c7ba-5d0e-7000-9c55-0a1b9f3a7c11 0190c7ba-5d0e-7000-8c55-0a1b9f3a7c22
    """
    with open_database("bridge jobs add-dependency") as connection:
        status = add_dependency(child, parent, on_parent_failure=on_parent_failure, connection=connection)
    if as_json:
        print_json({"child": child, "parent": parent, "status": status})
    else:
        click.echo(f"{child} {status}")


COMMANDS = (workflow_command, enqueue_flow_command, add_dependency_command)
