"""Another queue on Postgres that the user has installed, driven by a program of `benchmarks/peers`."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg

from bridge.bench.contestants.contestant import Contestant
from bridge.bench.cost import dead_rows
from bridge.bench.jobs import PAYLOAD
from bridge.bench.making import Making, Producer
from bridge.bench.measure import BenchError
from bridge.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridge.bench.contestants.contestant import Running
    from bridge.bench.rig import Rig

__all__ = ["Peer"]


class Peer(Contestant):
    """One program, in a database of its own on the same Postgres.

    Args:
        rig: the servers.
        file: the program; see `benchmarks/peers/peer.py` for what it is asked.
        python: the interpreter that has the queue installed; None is our own.

    Raises:
        SettingError: that interpreter cannot import the queue.
    """

    uses = frozenset({"postgres"})

    def __init__(self, rig: Rig, file: Path, python: str | None) -> None:
        super().__init__(rig)
        self._program = [python or sys.executable, str(file)]
        # How the program counts and times its jobs: see `Peer` in benchmarks/peers/peer.py.
        self._about: dict[str, Any] = json.loads(self._run("about", {}))
        self.name, self.share = str(self._about["name"]), float(self._about["share"])

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that are measured."""
        return dict(self._about["versions"])

    def _run(self, act: str, more: dict[str, str]) -> str:
        environment = {**self.rig.environment, **more}
        done = subprocess.run([*self._program, act], env=environment, check=False, capture_output=True, text=True)  # noqa: S603
        if done.returncode != 0:
            words = f"peer {self._program[1]} {act} ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
            raise SettingError(words, "install its queue where --python points, or leave it out")
        return done.stdout

    @cached_property
    def _dsn(self) -> str:
        dsn = self.rig.databases.create()
        self.stack.callback(self.rig.databases.drop, dsn)
        self._run("prepare", {"BENCH_DSN": dsn})
        return dsn

    @cached_property
    def _control(self) -> psycopg.Connection[tuple[Any, ...]]:
        return self.stack.enter_context(psycopg.connect(self._dsn, autocommit=True))

    @cached_property
    def _environment(self) -> dict[str, str]:
        return {**self.rig.environment, "BENCH_DSN": self._dsn, "BENCH_PAYLOAD": PAYLOAD}

    def clear(self) -> None:
        """Empty its tables by its own statement."""
        self._control.execute(self._about["clear"].encode())

    def making(self, act: str, count: int, *, warm: int = 0, rate: float = 0.0, first: int = 0) -> Producer:
        """Its own calls."""
        return Producer(Making(act, count, warm, rate, first), self._environment, self._program)

    def fill(self, jobs: int) -> float:
        """Its calls for many jobs."""
        with self.making("many", jobs) as producer:
            return producer.cpu_us(producer.go())

    @contextmanager
    def workers(self, concurrency: int) -> Iterator[Running]:
        """As many worker processes as the others have pool children."""
        with ExitStack() as stack:
            command = [*self._program, "worker"]
            each = range(concurrency)
            yield {"worker": [stack.enter_context(self.rig.running(f"peer-{n}", command, self._environment)) for n in each]}

    def ended(self, jobs: int) -> int:
        """By its own count."""
        del jobs
        row = self._control.execute(self._about["ended"].encode()).fetchone()
        return int(row[0]) if row else 0

    def ends(self, jobs: int) -> tuple[float, float]:
        """As its own rows say."""
        if self.ended(jobs) != jobs:
            raise BenchError(f"{self.name} has ended {self.ended(jobs)} of {jobs} jobs")
        first, last = self._control.execute(self._about["ends"].encode()).fetchone() or (0, 0)
        return float(first), float(last)

    def left_behind(self) -> int | None:
        """In its own database."""
        return dead_rows(self._control)
