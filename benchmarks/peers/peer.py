"""What `bridge bench --peer FILE` asks of another queue on Postgres.

A peer is a program in one file that imports its queue, fills in `Peer` and calls its `main`. It runs in any interpreter that has the queue
installed (`bridge bench --python`), so this file needs nothing but Python. Its commands:

    about                          what it is, as one line of JSON
    prepare                        put its schema into the empty database BENCH_DSN
    delay|many|paced COUNT WARM RATE FIRST
                                   make WARM jobs, say {"ready": true}, wait for a line, make COUNT jobs, say how long that took
    worker                         run jobs until SIGTERM

In the environment: BENCH_DSN, BENCH_PAYLOAD (what a job carries), BENCH_STAMPS (the file that stamps are noted in).
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Peer", "stamp"]


class Peer(ABC):
    """One queue.

    There are two kinds of jobs: one does nothing; a numbered one calls `stamp` with its number as its first line.

    Attributes:
        name: what reports call it.
        packages: whose versions are told.
        share: of the jobs that Celery runs end to end in a round, how many it runs: a quick queue needs more to be measured.
        clear: SQL that takes away all jobs, ended ones too.
        ended: SQL: how many jobs have ended well.
        ends: SQL: when a tenth of them, and when all had ended, as two numbers of seconds: workers connect before the clock runs.
    """

    name: str
    packages: tuple[str, ...]
    share: float = 1.0
    clear: str
    ended: str
    ends: str

    @property
    def dsn(self) -> str:
        """The database, for libpq."""
        return os.environ["BENCH_DSN"]

    @property
    def payload(self) -> str:
        """What every job carries."""
        return os.environ["BENCH_PAYLOAD"]

    @abstractmethod
    def prepare(self) -> None:
        """Put the schema into an empty database."""

    @abstractmethod
    def delay(self, count: int) -> None:
        """Make jobs that do nothing, one call and one commit each."""

    @abstractmethod
    def many(self, count: int) -> None:
        """Make as many by the call for many, in the batches that its documentation advises."""

    @abstractmethod
    def delay_stamp(self, number: int) -> None:
        """Make one numbered job; it is committed when this returns."""

    @abstractmethod
    def work(self) -> None:
        """Run jobs until SIGTERM, with the settings that its documentation advises for many small jobs."""

    def main(self) -> None:
        """Do what the arguments say."""
        act, values = sys.argv[1], sys.argv[2:]
        if act == "about":
            told = {word: getattr(self, word) for word in ("name", "share", "clear", "ended", "ends")}
            _say(**told, versions={package: version(package) for package in self.packages})
        elif act in {"prepare", "worker"}:
            (self.prepare if act == "prepare" else self.work)()
        else:
            count, warm, rate, first = int(values[0]), int(values[1]), float(values[2]), int(values[3])
            self._make(act, warm, rate or 1.0, -warm)
            _say(ready=True)
            sys.stdin.readline()
            start, used = time.perf_counter(), time.process_time()
            returned = self._make(act, count, rate, first)
            _say(seconds=time.perf_counter() - start, cpu=time.process_time() - used, returned=returned)
            sys.stdin.readline()

    def _make(self, act: str, count: int, rate: float, first: int) -> list[int]:
        """Make jobs; of a steady rate, when each call came back, on the monotonic clock."""
        if act != "paced":
            (self.delay if act == "delay" else self.many)(count)
            return []
        start, returned = time.monotonic(), []
        for number in range(count):
            due = start + (number + (first + number) * 0.618 % 1) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            self.delay_stamp(first + number)
            returned.append(time.monotonic_ns())
        return returned


def stamp(number: int) -> None:
    """Note that a numbered job has begun: the first line of its code."""
    now = time.monotonic_ns()
    with Path(os.environ["BENCH_STAMPS"]).open("a") as file:
        file.write(f"{number} {now}\n")


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
