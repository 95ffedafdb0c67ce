"""`python -m laboratory`: random faults under load from a printed seed; exit code 1 when a promise was broken."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from laboratory.errors import LabError
from laboratory.faults import FAULTS
from laboratory.runner import Plan, Report, run

SHOWN = 20  # sins that are printed with their histories


@click.command()
@click.option("--seconds", default=60.0, help="How long faults strike.", show_default=True)
@click.option("--seed", type=int, help="Repeats a run, as far as processes allow.  [default: drawn and printed]")
@click.option("--broker", type=click.Choice(["redis", "rabbitmq"]), default="redis", show_default=True)
@click.option("--faults", default="", help="Only these, separated by commas.  [default: all that fit]")
@click.option("--every", default=5.0, help="Seconds between two strikes.", show_default=True)
@click.option("--rate", default=20.0, help="Calls of the load a second; a call makes two jobs on average.", show_default=True)
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write report.json and report.txt there.")
@click.option("--keep", is_flag=True, help="Keep the folder of the servers, with all logs.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and nothing else.")
@click.option("--list", "listed", is_flag=True, help="Show the faults that there are.")
def main(**given: Any) -> None:
    """Run all of the bridge under load while faults strike, and compare what was promised with what happened."""
    if given["listed"]:
        for name, kind in sorted(FAULTS.items()):
            click.echo(f"{name:28} {(kind.__doc__ or '').splitlines()[0]}")
        return
    seed = random.randrange(10**6) if given["seed"] is None else given["seed"]  # noqa: S311
    names = tuple(filter(None, given["faults"].split(",")))
    plan = Plan(given["seconds"], seed, given["broker"], names, given["every"], given["rate"])
    say = _nothing if given["as_json"] else click.echo
    say(f"seed {seed}; repeat it with --seed {seed}")
    try:
        report = run(plan, say, keep=given["keep"])
    except LabError as error:
        click.echo(f"the laboratory itself failed: {error}", err=True)
        sys.exit(2)
    if given["folder"] is not None:
        write(report, given["folder"])
    click.echo(document(report) if given["as_json"] else "\n".join(sins(report, SHOWN)))
    sys.exit(1 if report.sins else 0)


def _nothing(_line: str) -> None:
    return


def write(report: Report, folder: Path) -> None:
    """Keep it as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(document(report))
    (folder / "report.txt").write_text("\n".join([*report.lines, *sins(report, len(report.sins))]) + "\n")


def document(report: Report) -> str:
    """The whole report as JSON."""
    return json.dumps(asdict(report), indent=1, default=str)


def sins(report: Report, most: int) -> list[str]:
    """The verdict in words."""
    lines = [f"{len(report.sins)} sins (seed {report.plan.seed})"]
    for sin in report.sins[:most]:
        lines += [f"{sin.rule}: job {sin.lab}: {sin.words}", *(f"    {line}" for line in sin.history)]
    return lines


if __name__ == "__main__":
    main()
