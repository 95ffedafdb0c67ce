"""top: what is going on, again and again."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live

from bridge.cli.database import open_database
from bridge.cli.tables import paper, print_json
from bridge.cli.top_text import Rates, plain, screen
from bridge.errors import ServerError
from bridge.queries import overview

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.queries.connection import Connection
    from bridge.queries.overview import Overview

__all__ = ["top_command"]

_NAME = "bridge top"


@click.command("top")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(1), help="End after so many looks. [default: none on a terminal, 1 elsewhere]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a look, each on a line of its own.")
def top_command(*, interval: float, count: int | None, as_json: bool) -> None:
    """Watch queues, rates, running jobs, workers and the tick live. Changes nothing.

    \b
    Examples:
      bridge top
      bridge top --interval 10
      bridge top --json --count 6 --interval 10 > minute.jsonl

    q or Ctrl-C ends it. Rates are those of the last minute, from counters that the tick brings up to date every ten seconds. A database
    that goes away is asked again with each look. What is late or failing stands at the top, with what to do.
    """
    watch = _Watch(interval)
    signal.signal(signal.SIGTERM, watch.end)
    terminal = sys.stdout.isatty() and not as_json
    with suppress(KeyboardInterrupt):
        if terminal and count is None:
            _live(watch)
        else:
            _lines(watch, count or 1, as_json=as_json)


class _Watch:
    """Looks again and again, over one connection as long as it holds.

    Attributes:
        rates: from all looks so far.
    """

    def __init__(self, interval: float) -> None:
        self.rates = Rates()
        self._interval = interval
        self._connection: Connection = open_database(_NAME)
        self._ended = False

    def end(self, *_signal: Any) -> None:
        """Handle a signal: make no further look."""
        self._ended = True

    def look(self) -> Overview:
        """What there is now.

        Raises:
            ServerError: the database cannot be reached; the next look connects again.
        """
        if self._connection.closed:
            self._connection = open_database(_NAME)
        try:
            found = overview.look(self._connection)
        except ServerError:
            self._connection.close()
            raise
        self.rates.add(found.at, found.ended)
        return found

    def passes(self, wait: Callable[[float], bool]) -> bool:
        """Wait until the next look is due; False when there shall be none.

        Args:
            wait: waits so many seconds at most, and says whether somebody asked for the end.
        """
        until = time.monotonic() + self._interval
        while not self._ended and (left := until - time.monotonic()) > 0:
            if wait(min(left, 0.2)):
                return False
        return not self._ended


def _lines(watch: _Watch, count: int, *, as_json: bool) -> None:
    for number in range(count):
        if number and not watch.passes(_sleep):
            return
        found = watch.look()
        if as_json:
            print_json(plain(found, watch.rates), on_one_line=True)
        else:
            paper().print(screen(found, watch.rates))


def _live(watch: _Watch) -> None:
    console = Console()
    found = watch.look()
    lost = None
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(found, watch.rates, lines=console.height, lost=lost), refresh=True)
            if not watch.passes(pressed):
                return
            try:
                found, lost = watch.look(), None
            except ServerError as error:
                lost = str(error)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Read single keys meanwhile; what it gives waits for one, and says whether it was q."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        yield _sleep
        return
    import termios
    import tty

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        return bool(ready) and b"q" in os.read(keyboard, 64).lower()  # past the buffer of sys.stdin, which would keep the rest

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
