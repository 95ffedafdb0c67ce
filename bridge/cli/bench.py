"""bench: how fast this is beside plain Celery, on this machine."""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bridge.bench.rounds import Options, Teller, run
from bridge.bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from bridge.bench.measure import Sample

__all__ = ["bench_command"]


@click.command("bench")
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each scenario; a ratio is their median.")
@click.option(
    "--jobs",
    type=click.IntRange(2),
    help="Jobs a side and round. [default: 20,000; latency 200; memory and urgent 1,000,000; claim 5,000,000]",
)
@click.option("--concurrency", default=2, show_default=True, type=click.IntRange(1), help="Pool children of a worker.")
@click.option("--rate", default=20.0, show_default=True, type=click.FloatRange(0.1), help="Jobs a second in the scenario latency.")
@click.option("--database-url", help="A Postgres without jobs, to be filled and emptied. [default: one of our own]")
@click.option("--broker-url", help="A Redis, redis://host:port/n, with databases n and n+1 empty. [default: one of our own]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write the JSON to this file too.")
def bench_command(
    *, scenarios: tuple[str, ...], rounds: int, jobs: int | None, concurrency: int, rate: float, database_url: str | None,
    broker_url: str | None, as_json: bool, output: Path | None,
) -> None:  # fmt: skip
    """Measure this beside plain Celery on the same work, in interleaved rounds; all scenarios, or those named.

    It needs nothing: Postgres and Redis are started as they come in a folder that goes away. TMPDIR chooses the disk.
    Jobs that are lost or run twice end it with exit code 1 and without figures.

    \b
    Examples:
      bridge bench
      bridge bench drain e2e --rounds 7 --output today.json
      bridge bench e2e --concurrency 8
      bridge bench latency --rate 500 --jobs 2000
    """
    teller = _Printer()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, teller.end)
    chosen = [name for name in SCENARIOS if name in scenarios] or list(SCENARIOS)
    with teller.progress:
        said = _run(chosen, Options(rounds, jobs, concurrency, rate), database_url, broker_url, teller)
    text = json.dumps(said, indent=1)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        click.echo(text)
    else:
        from bridge.bench.report import print_report

        print_report(Console(width=None if sys.stdout.isatty() else 140), said, said["scenarios"])


def _run(names: list[str], options: Options, database_url: str | None, broker_url: str | None, teller: Teller) -> dict[str, Any]:
    from contextlib import closing

    from bridge.bench import machine
    from bridge.bench.report import document
    from bridge.bench.rig import Rig
    from bridge.bench.servers import open_servers

    with open_servers(database_url, broker_url) as servers, closing(Rig(servers)) as rig:
        facts = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": {"rounds": options.rounds, "jobs": options.jobs, "concurrency": options.concurrency, "rate": options.rate},
            "machine": machine.machine(), "versions": machine.versions(rig), "servers": machine.servers(rig),
        }  # fmt: skip
        return {**facts, "scenarios": [document(run(SCENARIOS[name](rig, options), teller)) for name in names]}


class _Printer(Teller):
    """Shows progress on standard error: a bar on a terminal, and a line for each sample."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # Twice a second: drawing takes time from what is measured.
        self.progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True)
        self._task = self.progress.add_task("starting the servers", total=None)
        self._ended = False

    def end(self, *_: object) -> None:
        """Handle a signal: what was started is stopped, the folder goes.

        Raises:
            KeyboardInterrupt: always; and again at the next news, because one that comes within a fork is lost.
        """
        self._ended = True
        raise KeyboardInterrupt

    def begin(self, words: str, total: int) -> None:
        self.done(0)
        self.progress.reset(self._task, description=words, total=total)

    def done(self, count: int) -> None:
        if self._ended:
            raise KeyboardInterrupt
        self.progress.update(self._task, completed=count)

    def sampled(self, words: str, sample: Sample) -> None:
        figures = "  ".join(f"{name} {value:,.2f}" for name, value in sample.figures.items())
        self.progress.console.print(f"{words}: {figures}", highlight=False)
