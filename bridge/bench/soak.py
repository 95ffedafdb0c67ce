"""Whether vacuum keeps up at full rate for long: ``python -m bridge.bench.soak --minutes 60 --output soak.json``.

A drainer and a worker run jobs that do nothing as quickly as they can, behind a short backlog; numbered jobs among them tell how long one
waits. Sizes of tables and indexes, dead rows, the rate and the wait are told as they go. At the end every size and the wait of the last
quarter are held against those of the second: the exit code is 1 where one has grown by half.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.bench import machine
from bridge.bench.jobs import NOOP, PAYLOAD, read_stamps
from bridge.bench.making import Making, Producer
from bridge.bench.measure import BenchError
from bridge.bench.rig import Rig
from bridge.bench.scenarios.latency import percentiles
from bridge.bench.servers import open_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Soak", "State", "main"]

_BACKLOG = 1000  # ready jobs that are kept waiting, so that the worker always has one
_LOOK = 0.2  # seconds between two looks at the backlog
_RATE = 20.0  # numbered jobs a second
_GROWN = 1.5
_SMALL = 4 << 20  # bytes below which growth is none: a table that holds a window's rows is that large
_HOT = ("job", "ready", "inflight")
_TABLES = """
  select c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), coalesce(s.n_dead_tup, 0), coalesce(s.autovacuum_count, 0)
  from pg_class c left join pg_stat_user_tables s on s.relid = c.oid
  where c.relnamespace = 'bridge'::regnamespace and c.relname = any (%s)
"""
_ENDED = "select coalesce(sum(n_tup_ins), 0) from pg_stat_user_tables where schemaname = 'bridge' and relname like 'finished\\_%%'"


@dataclass(frozen=True, slots=True)
class State:
    """What is seen at one moment.

    Attributes:
        at: seconds since the start.
        ended: jobs that have ended so far, by the statistics of Postgres, which are a second old.
        tables: bytes of the table, bytes of its indexes, dead rows, and how often vacuum has come, by name.
    """

    at: float
    ended: int
    tables: dict[str, tuple[int, int, int, int]]


@dataclass
class Soak:
    """One long run.

    Args:
        rig: the servers.
        seconds: how long it lasts.
        every: seconds between two states.
        concurrency: pool children of the worker.
    """

    rig: Rig
    seconds: float
    every: float
    concurrency: int = 2
    states: list[State] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)  # seconds since the start, milliseconds

    def run(self) -> Iterator[State]:
        """Work, and tell what is seen.

        Raises:
            BenchError: a numbered job was lost, or a process died.
        """
        count = max(round(_RATE * self.seconds), 1)
        making = Producer(Making("bridge.paced", count, rate=_RATE), self.rig.environment)
        with self.rig.drainer() as drainer, self.rig.worker("joined", self.concurrency) as worker, making as producer:
            began = time.monotonic()
            producer.tell()
            for state in self._states(began):
                self.states.append(state)
                yield state
            returned = producer.said()["returned"]
            self.rig.wait_for(lambda: len(read_stamps(self.rig.stamps)), count, drainer, worker)
        started = dict(read_stamps(self.rig.stamps))
        if len(started) != count:
            raise BenchError(f"{len(started)} of {count} numbered jobs have begun")
        self.waits = [((at / 1e9) - began, (started[number] - at) / 1e6) for number, at in enumerate(returned)]

    def _states(self, began: float) -> Iterator[State]:
        due = self.every
        while (at := time.monotonic() - began) < self.seconds:
            waiting = int(self.rig.value("select count(*) from bridge.ready"))
            if waiting < _BACKLOG:
                self.rig.enqueue(NOOP, json.dumps([PAYLOAD]), _BACKLOG)
            if at >= due:
                due = at + self.every
                yield self._look(at)
            time.sleep(_LOOK)
        yield self._look(at)

    def _look(self, at: float) -> State:
        rows = self.rig.control.execute(_TABLES, (list(_HOT),)).fetchall()
        return State(at, int(self.rig.value(_ENDED)), {str(name): (*map(int, values),) for name, *values in rows})  # type: ignore[misc]

    def p99_ms(self, since: float, until: float) -> float:
        """The wait of the numbered jobs that were made between two moments; 0 where there are too few."""
        those = [wait for at, wait in self.waits if since <= at < until]
        return percentiles(those)["p99_ms"] if len(those) > 1 else 0.0

    def grown(self) -> list[str]:
        """What is larger by half in the last quarter than in the second."""
        second, last = (self.seconds / 4, self.seconds / 2), (self.seconds * 3 / 4, self.seconds + self.every)
        words = []
        for name in _HOT:
            for place, what in enumerate(("table", "indexes")):
                before, after = (max((s.tables[name][place] for s in self.states if a <= s.at < b), default=0) for a, b in (second, last))
                if before and after > max(_GROWN * before, _SMALL):
                    words.append(f"{what} of {name}: {before} to {after} bytes")
        waited, waits = self.p99_ms(*second), self.p99_ms(*last)
        return [*words, f"p99: {waited:.0f} to {waits:.0f} ms"] if waited and waits > _GROWN * waited else words


@contextmanager
def _rig(database_url: str | None, broker_url: str | None) -> Iterator[Rig]:
    with open_servers(database_url, broker_url) as servers, closing(Rig(servers)) as rig:
        rig.clear()
        yield rig


@click.command()
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0.01), help="How long.")
@click.option("--every", default=30.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between two lines.")
@click.option("--concurrency", default=2, show_default=True, type=click.IntRange(1), help="Pool children of the worker.")
@click.option("--database-url", help="A Postgres without jobs. [default: one of our own]")
@click.option("--broker-url", help="A Redis, redis://host:port/n, with databases n and n+1 empty. [default: one of our own]")
@click.option("--output", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write all that was seen to this file.")
def main(
    *, minutes: float, every: float, concurrency: int, database_url: str | None, broker_url: str | None, output: Path | None
) -> None:  # fmt: skip
    """Run jobs at full rate for long, and see whether sizes and waits stay as they are."""
    with _rig(database_url, broker_url) as rig:
        soak = Soak(rig, 60 * minutes, every, concurrency)
        facts: dict[str, Any] = {"machine": machine.machine(), "versions": machine.versions(rig), "servers": machine.servers(rig)}
        before = State(0.0, 0, {})
        for state in soak.run():
            click.echo(_line(state, before))
            before = state
    grown = soak.grown()
    waits = [{"until": state.at, "p99_ms": soak.p99_ms(state.at - every, state.at)} for state in soak.states]
    if output is not None:
        output.write_text(
            json.dumps({**facts, "states": [asdict(state) for state in soak.states], "waits": waits, "grown": grown}, indent=1)
        )
    for wait in waits:
        click.echo(f"{wait['until']:7.0f} s  p99 {wait['p99_ms']:.0f} ms")
    click.echo("; ".join(grown) or "nothing has grown")
    sys.exit(bool(grown))


def _line(state: State, before: State) -> str:
    rate = (state.ended - before.ended) / max(state.at - before.at, 1e-6)
    tables = "  ".join(
        f"{name} {table / 1e6:.1f}+{indexes / 1e6:.1f} MB {dead} dead" for name, (table, indexes, dead, _) in sorted(state.tables.items())
    )
    return f"{state.at:7.0f} s  {rate:6.0f} jobs/s  {tables}"


if __name__ == "__main__":
    main()
