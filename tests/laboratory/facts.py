"""Everything that is known after a scenario: what was asked for, what rows say, what really ran, what struck."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import namedtuple_row

if TYPE_CHECKING:
    from datetime import datetime

    from laboratory.ledger import Ledger

# Of live and ended jobs, by the number that each carries.
_JOBS = """
select (f.kwargs->>'lab')::bigint as lab, f.id::text, f.seq, f.task, f.status, f.attempts, f.losses, f.created_at, f.finished_at,
  f.unique_key, f.serial_key, f.result::text as result
from bridge.finished f where f.kwargs->>'lab' is not null
union all
select (j.kwargs->>'lab')::bigint, j.id::text, j.seq, j.task, v.status, j.attempts, j.losses, j.created_at, null, j.unique_key,
  j.serial_key, null
from bridge.job j join bridge.jobs v on v.id = j.id where j.kwargs->>'lab' is not null order by seq"""
_ATTEMPTS = "select id::text, attempt, outcome, run::text, worker, started_at, ended_at from bridge.attempts order by started_at"
_RUNS = """
select lab, task_id, run::text, min(delivery) as delivery, min(slot) as slot, min(pid) as pid,
  min(at) filter (where event = 'start') as started, count(*) filter (where event = 'start') as starts,
  max(at) filter (where event = 'end') as ended, max(at) filter (where event = 'raised') as raised
from event group by lab, task_id, run order by started"""

_EFFECTS = "select lab, run::text from effect"
# What lives, and what those that have ended are still to bring: the body of a chord, and what the sweep lets go or makes for them.
_UNENDED = """
select (select count(*) from bridge.job) + (select count(*) from bridge.second_look)
  + (select count(*) from bridge.chord c where bridge.is_chord_complete(c.id))"""


@dataclass(frozen=True)
class Run:
    """One run of a task as the witness saw it."""

    lab: int
    run: str
    delivery: str | None
    slot: str
    pid: int
    started: datetime
    starts: int
    ended: datetime | None
    raised: datetime | None

    @property
    def over(self) -> datetime | None:
        """When the task's function was left; None when its process died in it."""
        return self.ended or self.raised


@dataclass(frozen=True)
class Strike:
    """What struck, which workers' runs it may cost, how many at most, in which processes (None: not known), and whether it met anything.

    The last is a word of `faults.BECAME`.
    """

    id: int
    fault: str
    again: frozenset[str]
    most: int | None
    pids: frozenset[int] | None
    tail: bool
    at: datetime
    mended_at: datetime | None
    became: str


@dataclass
class Facts:
    """All of it, by the numbers of the load.

    Attributes:
        slack: seconds after a mend in which what it broke may still be found out.
        messages: what the broker still had at the end; None where it did not answer.
        ends: processes that ended by themselves: slot, status, end of the log.
    """

    asked: dict[int, Any]
    jobs: dict[int, list[Any]]
    attempts: dict[str, list[Any]]
    runs: dict[int, list[Run]]
    operated: dict[int, list[Any]]
    effects: dict[int, list[str]]
    strikes: list[Strike]
    slack: float
    broken_rules: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    messages: int | None = 0
    ends: list[tuple[str, int, str]] = field(default_factory=list)

    @cached_property
    def outcomes(self) -> dict[str, set[str]]:
        """What rows say became of a run."""
        found: dict[str, set[str]] = defaultdict(set)
        for rows in self.attempts.values():
            for row in rows:
                found[row.run].add(row.outcome)
        return found

    def attempts_of(self, lab: int) -> list[Any]:
        """What rows say of the runs of a job."""
        return [row for job in self.jobs.get(lab, []) for row in self.attempts.get(job.id, [])]

    def succeeded_runs(self, lab: int) -> list[str]:
        """The runs that ended the job well, as rows have it."""
        return [row.run for row in self.attempts_of(lab) if row.outcome == "succeeded"]

    def was_retried(self, lab: int) -> int:
        """How often an operator may have had it run again: also where nobody heard the answer."""
        return sum(1 for one in self.operated.get(lab, []) if one.action == "retry" and not (one.answer or "").startswith("refused"))


def read(dsn: str, ledger: Ledger, *, slack: float) -> Facts:
    """Read both databases.

    Args:
        dsn: the bridge's, past every proxy.
        ledger: the witness.
        slack: as in `Facts`.
    """
    with psycopg.connect(dsn) as ours, psycopg.connect(ledger.dsn) as witness:
        ours.execute("set transaction isolation level repeatable read")
        return facts_of(ours, witness, slack=slack)


def facts_of(ours: psycopg.Connection[Any], witness: psycopg.Connection[Any], *, slack: float) -> Facts:
    """What two connections see."""
    strikes = [
        Strike(row.id, row.fault, frozenset(row.again), row.most, _set(row.pids), row.tail, row.at, row.mended_at, row.became)
        for row in _rows(witness, "select * from strike order by id")
    ]
    attempts = _rows(ours, _ATTEMPTS)
    started = {row.run: row.started_at for row in attempts if row.started_at is not None}
    runs = [
        Run(row.lab, row.run, row.delivery, row.slot, row.pid, row.started, row.starts, row.ended, row.raised)
        for row in _rows(witness, _RUNS)
        if row.started
    ]
    # As rows have it: a process that was frozen before its task's first line writes that long after another run has taken its place.
    runs.sort(key=lambda run: started.get(run.run, run.started))
    return Facts(
        asked={row.lab: row for row in _rows(witness, "select * from asked order by lab")},
        jobs=_by(_rows(ours, _JOBS), "lab"),
        attempts=_by(attempts, "id"),
        runs=_by(runs, "lab"),
        operated=_by(_rows(witness, "select * from operated order by id"), "lab"),
        effects={lab: [row.run for row in rows] for lab, rows in _by(_rows(ours, _EFFECTS), "lab").items()},
        strikes=strikes,
        slack=slack,
        broken_rules=broken_rules(ours),
    )


def unended(connection: psycopg.Connection[Any]) -> int:
    """How much is still to end, jobs that are to be made of what has ended already among it."""
    row = connection.execute(_UNENDED.encode()).fetchone()
    return int(row[0]) if row else 0


def _rows(connection: psycopg.Connection[Any], query: str) -> list[Any]:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode()).fetchall()


def _set(found: list[int] | None) -> frozenset[int] | None:
    return None if found is None else frozenset(found)


def _by(rows: list[Any], name: str) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        found[getattr(row, name)].append(row)
    return dict(found)


def broken_rules(connection: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """What must hold in the tables at every moment and does not, with rows; the connection has one snapshot for all of it."""
    from invariants import RULES

    found = {rule: connection.execute(query.encode()).fetchmany(5) for rule, query in RULES.items()}
    return {rule: [tuple(row) for row in rows] for rule, rows in found.items() if rows}
