"""What the demo shows while it runs: bars on a terminal, a plain line for each change elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bridge.cli.tables import STYLES, span

if TYPE_CHECKING:
    from uuid import UUID

    from rich.progress import TaskID

    from bridge.job import Job

__all__ = ["Screen", "file_name", "open_screen"]

_FEW = 12  # bars that stay when they are full; of more files only those are shown that run


class Screen(Protocol):
    """Shows how far the demo is; a context manager."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, *_error: object) -> None:
        """Leave the place to what is printed next."""

    def step(self, words: str) -> None:
        """Something else is being done now, before or after the jobs."""

    def say(self, words: str) -> None:
        """Print a line that stays."""

    def expect(self, count: int) -> None:
        """So many jobs are on their way."""

    def change(self, job: Job) -> None:
        """A job changed its status or its progress."""


def open_screen() -> Screen:
    """The screen that fits where we print."""
    console = Console()
    return _Bars(console) if console.is_terminal else _Lines()


def file_name(job: Job) -> str:
    """What a job works on, as people call it."""
    path = (job.kwargs or {}).get("path")
    return Path(path).name if path else job.task.rpartition(".")[2].replace("_", " ")


class _Lines:
    """For logs and pipes."""

    def __init__(self) -> None:
        self._status: dict[UUID, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def step(self, words: str) -> None:
        click.echo(words)

    def say(self, words: str) -> None:
        click.echo(words)

    def expect(self, count: int) -> None:
        click.echo(f"{count} files are on their way")

    def change(self, job: Job) -> None:
        if self._status.get(job.id) == job.status:
            return
        self._status[job.id] = job.status
        took = f" in {span(job.seconds)}" if job.seconds is not None else ""
        click.echo(f"{file_name(job)}: {job.status}{took}")


class _Bars:
    """For people: a bar for each file, one for all."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._step: TaskID | None = None
        self._all: TaskID | None = None
        self._bars: dict[UUID, TaskID] = {}
        self._expected = 0
        self._ended: set[UUID] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def step(self, words: str) -> None:
        if self._step is None:
            self._step = self._progress.add_task(words, total=None, words="")
        self._progress.reset(self._step, total=None, description=words, visible=True)

    def say(self, words: str) -> None:
        self._progress.console.print(escape(words), highlight=False)

    def expect(self, count: int) -> None:
        if self._step is not None:
            self._progress.update(self._step, visible=False)
        self._expected = count
        self._all = self._progress.add_task("[bold]all files", total=count, words=f"0 of {count}")

    def change(self, job: Job) -> None:
        if self._expected <= _FEW or job.status == "running":
            self._draw(job)
        elif job.id in self._bars:
            self._progress.remove_task(self._bars.pop(job.id))
        if job.status.final:
            self._count(job)

    def _draw(self, job: Job) -> None:
        if job.id not in self._bars:
            self._bars[job.id] = self._progress.add_task(escape(file_name(job)), total=1.0, words="")
        progress = job.progress or {}
        style = STYLES.get(job.status, "")
        words = f"[{style}]{job.status}[/]" if style else str(job.status)
        if job.status == "running":
            words += f" {escape(progress.get('message') or '')}"
        self._progress.update(self._bars[job.id], completed=1.0 if job.status.final else progress.get("fraction", 0.0), words=words)

    def _count(self, job: Job) -> None:
        self._ended.add(job.id)
        if self._all is not None:
            done = min(len(self._ended), self._expected)
            self._progress.update(self._all, completed=done, words=f"{done} of {self._expected}")
