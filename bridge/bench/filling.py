"""Rows that are there before anything is measured: jobs of the future, history, and row versions that nobody can take away.

Straight into the tables, as no user may: what counts is that the rows are there, in the places and the order in which the functions of
the schema would have put them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.bench.jobs import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.bench.rig import Rig

__all__ = ["DAYS", "TASKS", "fill_dead", "fill_future", "fill_history"]

DAYS = 29  # that history goes back
TASKS = 20  # names of tasks among it
_TASK = "filled."
_PAGE = 100_000
_FUTURE = """
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select bridge.new_id(), %s || n %% %s, %s, 9, '[]', '{}', 4, 3, now() + interval '1 day' + n * interval '10 milliseconds', now(), now()
    from generate_series(%s::integer, %s::integer) n returning seq, run_at
  )
  insert into bridge.scheduled (seq, run_at) select m.seq, m.run_at from made m
"""
_HISTORY = """
  insert into bridge.finished (seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at,
    finished_at, started_at, status, result)
  select -n, bridge.new_id(), %s || n %% %s, %s, 9, '[]', '{}', 4, 3, 1, 0, at, at, at, at - interval '10 milliseconds',
    case when n %% 50 = 0 then 'failed' else 'succeeded' end, 'null'
  from generate_series(%s::integer, %s::integer) n, lateral (select now() - make_interval(days => %s) * (1 - n / %s::float8) as at) t
"""
# The life of jobs without its end in history, each step committed by itself, so that every version was seen by a snapshot taken before.
_LIFE = (
    """
  with made as (
    insert into bridge.job (id, task, queue, rank, args, kwargs, size, max_attempts, run_at, created_at, updated_at)
    select bridge.new_id(), %(task)s, %(queue)s, 9, '[]', '{}', 4, 3, now(), now(), now() from generate_series(1, %(count)s)
    returning seq, queue, rank, size
  )
  insert into bridge.ready (queue, rank, seq, size) select m.queue, m.rank, m.seq, m.size from made m order by m.seq
""",
    """
  with taken as (delete from bridge.ready returning seq)
  insert into bridge.inflight (seq, queue, token, shipment, drainer, claimed_at)
  select t.seq, %(queue)s, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), clock_timestamp() from taken t
""",
    "update bridge.inflight set state = 'published', published_at = clock_timestamp()",
    "update bridge.inflight set state = 'running', run = gen_random_uuid(), started_at = clock_timestamp()",
    "with gone as (delete from bridge.inflight returning seq) delete from bridge.job j using gone g where j.seq = g.seq",
)


def fill_future(rig: Rig, rows: int, done: Callable[[int], None]) -> None:
    """Jobs that are due from tomorrow on."""
    for first, last in _pages(rows):
        rig.control.execute(_FUTURE, (_TASK, TASKS, QUEUE, first, last))
        done(last)


def fill_history(rig: Rig, rows: int, done: Callable[[int], None]) -> None:
    """Jobs that ended in the last days, evenly, one in fifty of them badly; vacuumed, and on disk."""
    rig.value("select bridge.make_days((now() at time zone 'utc')::date - %s, %s)", DAYS + 1, DAYS + 3)
    for first, last in _pages(rows):
        rig.control.execute(_HISTORY, (_TASK, TASKS, QUEUE, first, last, DAYS, rows))
        done(last)
    rig.control.execute("vacuum (analyze) bridge.finished")
    # What the filling has left to write would be written during the measurement.
    rig.control.execute("checkpoint")


def fill_dead(rig: Rig, rows: int, done: Callable[[int], None]) -> None:
    """Go through so many lives: each leaves a dead row in `ready` and in `job`, and three in `inflight`. Nothing else may be there."""
    for first, last in _pages(rows):
        for step in _LIFE:
            rig.control.execute(step.encode(), {"task": _TASK, "queue": QUEUE, "count": last - first + 1})
        done(last)
    rig.control.execute("checkpoint")


def _pages(rows: int) -> Iterator[tuple[int, int]]:
    for first in range(1, rows + 1, _PAGE):
        yield first, min(first + _PAGE - 1, rows)
