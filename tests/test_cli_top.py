"""`bridge top`: one look for programs, and a live screen on a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from fix_client import command
from fix_servers import ROOT, wait_until
from rich.console import Console

from bridge.cli.top_text import Rates, plain, screen
from bridge.queries import overview

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session


class Terminal:
    """A process at a terminal of 30 lines of 140 characters, and what it has written there."""

    def __init__(self, *words: str, dsn: str) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 140, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        environment = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", *words],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment,
            cwd=ROOT,
        )
        self._written = ""

    def shows(self, *parts: str) -> bool:
        """Whether all of these have been on the screen since the last time that this was true."""
        while select.select([self._ours], [], [], 0)[0]:
            self._written += os.read(self._ours, 100_000).decode(errors="replace")
        if all(part in self._written for part in parts):
            self._written = ""
            return True
        return False

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._ours, keys)

    def ended(self) -> int:
        """Its exit code; the terminal is as it was."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.shows("\0")  # nobody may be kept waiting for his output to be read
            select.select([self._ours], [], [], 0.1)
        assert self.process.poll() is not None, "it did not end"
        assert termios.tcgetattr(self._theirs) == self.before
        return self.process.returncode

    def close(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def at_a_terminal(*words: str, dsn: str) -> Iterator[Terminal]:
    terminal = Terminal(*words, dsn=dsn)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.usefixtures("ours")
def test_a_look_for_programs_has_queues_runs_and_what_is_not_well(db: Session) -> None:
    running = db.enqueue("a.running", queue="films", args=[1])
    db.run(queue="films")
    db.enqueue("a.waiting", queue="films")
    db.enqueue("a.later", queue="mail", delay=timedelta(hours=1))
    db.do("select bridge.pause('mail')")
    result = command("top", "--json", "--count", 1)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    films, mail = found["queues"]
    assert (films["queue"], films["queued"], films["running"], films["pause"]) == ("films", 1, 1, None)
    assert (mail["queue"], mail["scheduled"], mail["pause"], mail["oldest_seconds"]) == ("mail", 1, "soft", None)
    assert [row["id"] for row in found["running"]] == [str(running)]
    assert found["running"][0]["attempt"] == 1
    # Nobody has ever ticked here, and it says what to do.
    (tick,) = [row for row in found["health"] if row["component"] == "tick"]
    assert tick["status"] == "failing"
    assert tick["remedy"]
    lines = command("top").stdout
    assert str(running) in lines
    assert "nobody has ever ticked" in lines
    assert command("top", "--interval", 0).exit_code == 2


def test_rates_are_those_of_the_last_minute(db: Session) -> None:
    rates = Rates()
    first = overview.look(db.connection)
    rates.add(first.at, first.ended)
    assert rates.of("celery", "succeeded") is None
    for _ in range(6):
        db.enqueue()
        db.finish(*db.run())
    wait_until(lambda: db.one("select bridge.tally_ends(clock_timestamp(), interval '0')") is not None and _counted(db) == 6)
    second = overview.look(db.connection)
    rates.add(first.at + timedelta(seconds=3), second.ended)
    assert rates.of("celery", "succeeded") == pytest.approx(2.0)
    assert rates.of("celery", "failed") == 0
    assert plain(second, rates)["queues"][0]["succeeded_per_second"] == pytest.approx(2.0)
    # A minute later the first look counts no more.
    rates.add(first.at + timedelta(seconds=63), second.ended)
    rates.add(first.at + timedelta(seconds=64), second.ended)
    assert rates.of("celery", "succeeded") == 0


def _counted(db: Session) -> int:
    return int(sum(overview.look(db.connection).ended.values()))


def test_a_viewer_may_look(db: Session) -> None:
    db.enqueue(queue="films")
    db.do("set role bridge_viewer")
    assert [row["queue"] for row in overview.look(db.connection).queues] == ["films"]


def test_a_small_screen_says_what_it_does_not_show(db: Session) -> None:
    for number in range(30):
        db.enqueue(queue=f"queue-{number:02}")
    db.do("select bridge.tick()")
    console = Console(width=140, height=20, record=True, file=io.StringIO())
    found, rates = overview.look(db.connection), Rates()
    rates.add(found.at, found.ended)
    console.print(screen(found, rates, lines=20))
    text = console.export_text()
    assert "30 queues, " in text
    assert "not shown" in text
    assert len(text.splitlines()) <= 20


def test_the_live_screen_follows_what_happens_and_ends_by_q(db: Session, dsn: str) -> None:
    db.enqueue("a.first", queue="films")
    with at_a_terminal("top", "--interval", "0.2", dsn=dsn) as terminal:
        wait_until(lambda: terminal.shows("films"))
        db.enqueue("a.second", queue="parcels")
        wait_until(lambda: terminal.shows("parcels"))
        # A session that is cut is made again by the next look.
        ours = "pg_stat_activity where datname = current_database() and application_name = 'bridge top'"
        assert db.one(f"select count(pg_terminate_backend(pid)) from {ours}") == 1
        wait_until(lambda: terminal.shows("not of now"))
        db.enqueue("a.third", queue="letters")
        wait_until(lambda: terminal.shows("letters"))
        terminal.press(b"xq")
        assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_and_give_the_terminal_back(dsn: str, number: signal.Signals) -> None:
    with at_a_terminal("top", "--interval", "3600", dsn=dsn) as terminal:
        wait_until(lambda: terminal.shows("0 queues"))
        terminal.process.send_signal(number)
        assert terminal.ended() == 0
