"""bench: how fast this is beside plain Celery, on this machine."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bridge.bench.rounds import Options, Teller, run
from bridge.bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.bench.measure import Sample
    from bridge.bench.rig import Rig

__all__ = ["bench_command"]

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command("bench")
@click.argument("scenarios", nargs=-1, type=click.Choice([*SCENARIOS, "all"]))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Rounds of each scenario; a ratio is their median.")
@click.option("--warm-up/--no-warm-up", default=True, help="A round before that has a tenth of the jobs and does not count.")
@click.option("--side", "sides", multiple=True, help="Measure these sides alone, where a scenario has them, such as bridge.")
@click.option("--jobs", type=click.IntRange(2), help="Jobs a side and round. [default: by the scenario, see benchmarks/README.md]")
@click.option("--rows", type=click.IntRange(100), help="Rows there beforehand: growth 5,000,000, held 1,000,000, lists 20,000,000.")
@click.option("--concurrency", multiple=True, default=(2, 8), show_default=True, type=click.IntRange(1), help="Pool children of a worker.")
@click.option(
    "--rate", "rates", multiple=True, default=(20.0, 500.0), show_default=True, type=click.FloatRange(0.1), help="Jobs a second in latency."
)
@click.option("--producers", multiple=True, default=(1, 8), show_default=True, type=click.IntRange(1), help="Processes that make them.")
@click.option(
    "--hold", default=30.0, show_default=True, type=click.FloatRange(0), help="Minutes that a snapshot is held before held measures."
)
@click.option("--clients", default=200, show_default=True, type=click.IntRange(1), help="Connections that enqueue at once in clients.")
@click.option(
    "--peer", "peers", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A program of benchmarks/peers."
)
@click.option("--python", help="The interpreter that has the peers installed. [default: our own]")
@click.option("--database-url", help="A Postgres without jobs, to be filled and emptied. [default: one of our own]")
@click.option("--broker-url", help="A Redis, redis://host:port/n, with databases n and n+1 empty. [default: one of our own]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=_FILE, help="Write the JSON to this file too.")
@click.option("--plot", type=_FILE, help="Draw the run into this file, such as today.svg; needs the extra bench.")
def bench_command(
    *, scenarios: tuple[str, ...], database_url: str | None, broker_url: str | None, as_json: bool, output: Path | None, plot: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Measure this beside plain Celery on the same work, in interleaved rounds; the scenarios named, else those that take no hours.

    It needs nothing: Postgres and Redis are started as they come in a folder that goes away. TMPDIR chooses the disk.
    Jobs that are lost or run twice end it with exit code 1 and without figures. Options that name several values take each in turn.

    \b
    Examples:
      bridge bench
      bridge bench drain e2e --output today.json --plot today.svg
      bridge bench e2e --concurrency 8
      bridge bench latency --rate 500 --producers 1
      bridge bench growth lists --rows 1000000
      bridge bench enqueue e2e latency --peer benchmarks/peers/pgmq_peer.py
    """
    teller = _Printer()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, teller.end)
    if plot is not None:
        from bridge.bench.plot import require_plotting

        require_plotting()
    with teller.progress:
        said = _run(_chosen(scenarios), Options(**options), database_url, broker_url, teller)
    text = json.dumps(said, indent=1)
    if output is not None:
        output.write_text(text + "\n")
    if plot is not None:
        from bridge.bench.plot import draw

        draw(said, plot)
    if as_json:
        click.echo(text)
    else:
        from bridge.bench.report import print_report

        print_report(Console(width=None if sys.stdout.isatty() else 140), said, said["scenarios"])


def _chosen(names: tuple[str, ...]) -> list[str]:
    """In their own order; without a name those that do not last."""
    if "all" in names:
        return list(SCENARIOS)
    return [name for name in SCENARIOS if name in names] or [name for name, kind in SCENARIOS.items() if not kind.lasts]


def _run(names: list[str], options: Options, database_url: str | None, broker_url: str | None, teller: Teller) -> dict[str, Any]:
    from contextlib import closing

    from bridge.bench import machine
    from bridge.bench.contestants import contestants
    from bridge.bench.rig import Rig
    from bridge.bench.servers import open_servers

    with open_servers(database_url, broker_url) as servers, closing(Rig(servers)) as rig:
        contestants(rig, options)  # a peer that cannot be had is told of before anything is measured
        facts = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": {**asdict(options), "peers": [path.name for path in options.peers]},
            "machine": machine.machine(),
            "versions": machine.versions(rig),
            "servers": machine.servers(rig),
        }
        return {**facts, "scenarios": [said for name in names for said in _documents(name, rig, options, teller)]}


def _documents(name: str, rig: Rig, options: Options, teller: Teller) -> Iterator[dict[str, Any]]:
    """What a scenario says under each of its conditions, or why it is left out."""
    from bridge.bench.measure import SkippedError
    from bridge.bench.report import document

    for condition in SCENARIOS[name].conditions(options):
        try:
            yield document(run(SCENARIOS[name](rig, options, condition), teller))
        except SkippedError as error:
            yield {"name": name, "condition": condition, "skipped": str(error)}


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
