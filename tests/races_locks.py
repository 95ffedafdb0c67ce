"""What a call locks, in which order: each row that it would lock is held by somebody in turn, and what it has by then is looked at."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from fix_sql import Session
from psycopg.types.json import Jsonb
from races_run import PATIENCE, is_waiting
from races_world import Maker, World

if TYPE_CHECKING:
    from races_table import Call

# Two functions for tests alone. Rows are named by table and their key, as text.
LAB = """
    create schema lab;
    create function lab.row_key(p_table text, p_row jsonb) returns text language sql as $$
      select case when p_table in ('ready', 'finished') then p_row->>'seq' else string_agg(p_row->>a.attname, ' ' order by k.n) end
      from pg_index i cross join unnest(i.indkey) with ordinality k (attnum, n)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where i.indrelid = ('bridge.' || p_table)::regclass and i.indisprimary
    $$;
    create function lab.hold(p_name text, p_key text) returns void language plpgsql as $$
    begin
      execute format('select from bridge.%1$I t where lab.row_key(%1$L, to_jsonb(t)) = %2$L for update', p_name, p_key);
    end
    $$;
    create function lab.make(p_name text, p_row jsonb) returns void language plpgsql as $$
    begin
      execute format('insert into bridge.%1$I overriding system value select (jsonb_populate_record(null::bridge.%1$I, %2$L)).*',
        p_name, p_row);
    end
    $$;"""
# The order in which rows are locked that somebody may have to wait for. Whoever waits for one has none that comes later.
ORDER = [
    "look", "drainer", "listener", "worker", "breaker", "paused", "gate", "job_limit", "schedule", "chord", "batch",
    "unique_key to be taken", "job to be made", "finished", "place", "what is the place's", "permit", "bucket",
]  # fmt: skip
# What is locked with nothing before it, so that others may have it at any time; all other rows are had with the row of a place.
FIRST = {"look", "drainer", "listener", "worker", "paused", "breaker", "gate", "job_limit", "schedule", "chord", "batch", "finished"}
CALLBACK = "a.callback"  # of a batch: its job has an id that nobody else makes, and who makes it has the batch
Shape = dict[str, Any]
PLACES = ["blocked", "scheduled", "ready", "held", "inflight"]  # in the direction in which a job moves
MADE = {"unique_key": "unique_key to be taken", "job": "job to be made"}  # two may want to make the same: the second waits for the first
OWN = ["job", "unique_key", "dependency", "replaced", "revoked", "chord_part", "waiter", "result", "schedule_run", "untold"]
LIMITS = ["permit", "bucket"]
PASSED = ["lane", "second_look"]  # what nobody waits for: what another has of it is passed by
TABLES = [*sorted(FIRST), *PLACES, *OWN, *LIMITS, *PASSED]


# Name, key and content of the rows that another transaction has locked, or changed: what is left over when all others are locked.
LOCKED = "with " + ", ".join(
    f"free_{t} as materialized (select t.tableoid, t.ctid from bridge.{t} t for update skip locked)" for t in TABLES
)
LOCKED += " union all ".join(
    f" select '{t}', lab.row_key('{t}', to_jsonb(t)), to_jsonb(t) from bridge.{t} t"
    f" where not exists (select from free_{t} f where f.tableoid = t.tableoid and f.ctid = t.ctid)"
    for t in TABLES
)
# The same of the rows that a session's own transaction has inserted.
MADE_HERE = " union all ".join(
    f"select '{t}', lab.row_key('{t}', to_jsonb(t)), to_jsonb(t) from bridge.{t} t where t.xmin::text = pg_current_xact_id()::xid::text"
    for t in MADE
)


class Row(NamedTuple):
    """A row of a table, by its key. `is_new`: it is not there yet, and who makes it has others wait who want to make it too."""

    table: str
    key: str
    is_new: bool = False

    @property
    def kind(self) -> str:
        """What ORDER calls it."""
        if self.is_new:
            return MADE[self.table]
        return "place" if self.table in PLACES else self.table if self.table in (*FIRST, *LIMITS, *PASSED) else "what is the place's"

    @property
    def turn(self) -> tuple[int, int, int]:
        """Where it comes in the order of locks: places by the direction in which jobs move, of those the first made first."""
        place = (PLACES.index(self.table), int(self.key)) if self.table in PLACES else (0, 0)
        return (ORDER.index(self.kind) if self.kind in ORDER else len(ORDER), *place)


class Edge(NamedTuple):
    """While a call waited for one row it had another."""

    had: Row
    wanted: Row


class Prober:
    """Finds what calls lock, in worlds of one database."""

    def __init__(self, dsn: str) -> None:
        self.maker = Maker(dsn)
        self.maker.db.do(LAB)
        self._holder, self._caller, self._watch = Session(dsn), Session(dsn), Session(dsn)
        self._holder.do("set session_replication_role = replica")
        self._watch.do("set lock_timeout = '5ms'")
        self._pid = self._caller.one("select pg_backend_pid()")
        self._pool = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        self._pool.shutdown()
        for session in (self.maker.db, self._holder, self._caller, self._watch):
            session.connection.close()

    def edges(self, call: Call, world: World) -> list[Edge]:
        """What a call has locked whenever it could wait for a row. Nothing of the call stays."""
        self._caller.do("begin")
        self._call(call, world)
        rows = {Row(name, key): shape for name, key, shape in self._rows(LOCKED)}
        if self._caller.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            made = self._caller.rows(MADE_HERE)
            rows |= {
                Row(name, key, is_new=True): shape
                for name, key, shape in made
                if name in MADE and Row(name, key) not in rows and shape.get("task") != CALLBACK
            }
        self._caller.do("rollback")
        if len(rows) == 1 and not call.passes:
            return []
        waited_for = {row: shape for row, shape in rows.items() if row.kind != "what is the place's"}
        return [Edge(had, wanted) for wanted, shape in waited_for.items() for had in self._had(call, world, wanted, shape, rows)]

    def _had(self, call: Call, world: World, wanted: Row, shape: Shape, rows: dict[Row, Shape]) -> list[Row]:
        """What a call has while it waits for a row; itself when it waits and has nothing."""
        self._holder.do("begin")
        try:
            self._hold(wanted, shape)
            self._caller.do("begin")
            answer = self._pool.submit(self._call, call, world)
            had = self._look(wanted, rows) or [wanted] if is_waiting(answer, self._watch, self._pid) else []
        except psycopg.errors.UniqueViolation:
            return []
        finally:
            self._holder.do("rollback")
        answer.result(PATIENCE)
        self._caller.do("rollback")
        return had

    def _hold(self, row: Row, shape: Shape) -> None:
        if row.is_new:
            self._holder.do("select lab.make(%s, %s)", row.table, Jsonb(shape))
        else:
            self._holder.do("select lab.hold(%s, %s)", row.table, row.key)

    def _look(self, wanted: Row, rows: dict[Row, Shape]) -> list[Row]:
        """Which rows the call has."""
        had = [Row(name, key) for name, key, _ in self._rows(LOCKED)]
        for row, shape in rows.items():
            if row.is_new and row != wanted and not self._can_make(row, shape):
                had.append(row)
        return [row for row in had if (row.table, row.key) != (wanted.table, wanted.key)]

    def _can_make(self, row: Row, shape: Shape) -> bool:
        self._watch.do("begin")
        try:
            self._watch.do("select lab.make(%s, %s)", row.table, Jsonb(shape))
        except psycopg.errors.LockNotAvailable:
            return False
        finally:
            self._watch.do("rollback")
        return True

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        self._watch.do("begin")
        found = self._watch.rows(query)
        self._watch.do("rollback")
        return found

    def _call(self, call: Call, world: World) -> None:
        with contextlib.suppress(psycopg.Error):
            self._caller.connection.execute(f"select {call.sql}".encode(), world.named)
