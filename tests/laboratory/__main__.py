"""`python -m laboratory`: random faults under load from a printed seed; exit code 1 when a promise was broken."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from laboratory import plots, surroundings
from laboratory.errors import LabError
from laboratory.faults import FAULTS
from laboratory.runner import HAVING, Plan, run
from laboratory.samples import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from laboratory.report import Report

ELDERS = ("drainer2", "worker2")  # spared by faults of processes in a long run, so that they grow old
SHOWN = 20  # sins that are printed with their histories


@click.command()
@click.option("--seconds", default=60.0, help="How long faults strike.", show_default=True)
@click.option("--minutes", type=float, help="The same as a long run: memory, connections and handles are sampled and judged too.")
@click.option("--seed", type=int, help="Repeats a run, as far as processes allow.  [default: drawn and printed]")
@click.option("--broker", type=click.Choice(["redis", "rabbitmq"]), help="[default: drawn as what --with names, or redis]")
@click.option("--faults", default="", help="Only these, separated by commas.  [default: all that fit]")
@click.option(
    "--with",
    "having",
    multiple=True,
    type=click.Choice([*HAVING, "nothing"]),
    help="Have this as well, and the faults that need it.  [default: drawn, unless --broker, --faults or --minutes are given]",
)
@click.option("--every", type=float, help="Seconds between two strikes.  [default: 5; of a long run 20]")
@click.option("--rate", type=float, help="Calls of the load a second; a call makes two jobs on average.  [default: 20; of a long run 10]")
@click.option(
    "--page", type=click.Path(path_type=Path), help="Of a long run: write a page there (FILE.md), and pictures beside it (FILE/)."
)
@click.option("--trace/--no-trace", default=None, help="Replay all changes of rows against the model.  [default: yes; no in a long run]")
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write report.json and report.txt there.")
@click.option("--keep", is_flag=True, help="Keep the folder of the servers, with all logs.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and nothing else.")
@click.option("--list", "listed", is_flag=True, help="Show the faults that there are.")
def main(**given: Any) -> None:
    """Run all of the bridge under load while faults strike, and compare what was promised with what happened."""
    if given["listed"]:
        for name, kind in sorted(FAULTS.items()):
            click.echo(f"{name:42} {(kind.__doc__ or '').splitlines()[0]}")
        return
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # so that all of it is cleared away
    say = _nothing if given["as_json"] else click.echo
    plan = plan_of(given, say)
    say(f"seed {plan.seed}: {', '.join((plan.broker, *plan.having))}; repeat it with --seed {plan.seed}")
    with TemporaryDirectory() as folder:
        sampler = Sampler(Path(folder) / "samples.jsonl") if given["minutes"] else None
        try:
            report = run(plan, say, keep=given["keep"], sampler=sampler)
        except LabError as error:
            click.echo(f"the laboratory itself failed: {error}", err=True)
            sys.exit(2)
        write(report, sampler, given["folder"], given["page"])
    click.echo(document(report) if given["as_json"] else "\n".join(sins(report, SHOWN)))
    sys.exit(1 if report.sins else 0)


def _nothing(_line: str) -> None:
    return


def plan_of(given: dict[str, Any], say: Callable[[str], None] = _nothing) -> Plan:
    """The plan that a command line asks for; where it says nothing of a broker and of what there is beside it, the seed does."""
    seed = random.randrange(10**6) if given["seed"] is None else given["seed"]  # noqa: S311
    long = given["minutes"] is not None
    broker, having = given["broker"] or "redis", tuple(word for word in given["having"] if word != "nothing")
    if not (given["broker"] or given["having"] or given["faults"] or long):
        broker, having = surroundings.at_hand(*surroundings.draw(seed), say)
    return Plan(
        60 * given["minutes"] if long else given["seconds"],
        seed,
        broker,
        tuple(filter(None, given["faults"].split(","))),
        given["every"] or (20.0 if long else 5.0),
        given["rate"] or (10.0 if long else 20.0),
        spared=ELDERS if long else (),
        trace=not long if given["trace"] is None else given["trace"],
        having=having,
    )


def write(report: Report, sampler: Sampler | None, folder: Path | None, page: Path | None) -> None:
    """Keep it as files, as far as asked."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(document(report))
        (folder / "report.txt").write_text("\n".join([*report.lines, *sins(report, len(report.sins))]) + "\n")
        if sampler is not None:
            shutil.copy(sampler.file, folder)
    if page is not None and sampler is not None:
        pictures = plots.draw(report, sampler.samples, page.with_suffix(""))
        page.write_text(plots.page(report, sampler.samples, pictures, page.stem))


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
