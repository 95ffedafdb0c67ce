"""Records each change of a job's rows in a running system, as triggers see it, to be replayed against the model.

The records are written by the transactions that they are about, into an ordinary table: what a crash of Postgres forgets of the rows it
forgets of the trace as well, and of each job their numbers are in the order in which its changes came about, because who changes a row
waits for who has changed it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

# Of each table, what the model has a word for.
COLUMNS = {
    "job": ("seq", "id", "attempts", "losses", "max_attempts", "deadline", "alone"),
    "blocked": ("seq",),
    "scheduled": ("seq",),
    "ready": ("seq", "token"),
    "held": ("seq", "token"),
    "inflight": ("seq", "state", "token", "copied", "shipment", "run", "worker", "missing_since", "cancelled_at", "together"),
    "finished": ("seq", "id", "status", "attempts", "losses", "run"),
    "attempt": ("seq", "id", "outcome", "run"),
}
TABLE = """
create schema trace;
-- The checkpointer is as old as the memory that the server's processes share: the crash of one session, too, makes both anew.
create function trace.since() returns timestamptz language sql volatile set search_path = pg_catalog as $$
  select coalesce(min(a.backend_start), pg_postmaster_start_time()) from pg_stat_get_activity(null) a where a.backend_type = 'checkpointer';
$$;
create table trace.record (
  id     bigint generated always as identity primary key,
  xid    xid8 not null default pg_current_xact_id(),
  at     timestamptz not null default clock_timestamp(),
  server timestamptz not null default trace.since(),  -- since when it runs
  place  text not null,                 -- the table
  seq    bigint not null,
  by     text[] not null,               -- the functions that did it, the innermost first
  before jsonb,
  after  jsonb
)"""
TRIGGER = r"""
create function trace.note_{table}() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp
  set timezone = 'UTC' as $$
declare
  v_context text;
begin
  get diagnostics v_context = pg_context;
  insert into trace.record (place, seq, by, before, after)
  values ('{table}', case tg_op when 'DELETE' then old.seq else new.seq end,
    array(select coalesce(m[1], m[2]) from regexp_matches(v_context, '^(?:PL/pgSQL function bridge\.(\w+)|SQL function "(\w+)")', 'gn') m),
    case when tg_op <> 'INSERT' then jsonb_build_object({old}) end, case when tg_op <> 'DELETE' then jsonb_build_object({new}) end);
  return null;
end
$$;
create trigger trace_rows after insert or delete on bridge.{table} for each row execute function trace.note_{table}();
create trigger trace_changes after update on bridge.{table} for each row
  when (({olds}) is distinct from ({news})) execute function trace.note_{table}()"""


@dataclass(frozen=True)
class Record:
    """One row of one table that came, went or changed."""

    id: int
    xid: str
    server: Any
    place: str
    seq: int
    by: tuple[str, ...]
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def __str__(self) -> str:
        """One line of a story."""
        whole = self.before is None or self.after is None
        row = self.after or self.before or {}
        shown = {name: value for name, value in row.items() if value is not None and (whole or (self.before or {})[name] != value)}
        how = "goes from" if self.after is None else "comes to" if self.before is None else "changes in"
        return f"{self.id} (transaction {self.xid}) {how} {self.place} by {' < '.join(self.by[:4]) or 'plain SQL'}: {shown}"


def install(dsn: str) -> None:
    """Record from now on; the connection's role must own our schema. There is no job yet, or its story will begin in the middle."""
    with psycopg.connect(dsn) as connection:
        connection.execute(TABLE.encode())
        for table, columns in COLUMNS.items():
            words = {
                row: ", ".join(f"'{name}', {row}.{name}" for name in columns) for row in ("old", "new")
            } | {f"{row}s": "row(" + ", ".join(f"{row}.{name}" for name in columns) + ")" for row in ("old", "new")}  # fmt: skip
            connection.execute(TRIGGER.format(table=table, **words).encode())


def read(dsn: str) -> list[Record]:
    """All that was recorded, in the order of its numbers."""
    query = "select id, xid::text, server, place, seq, by, before, after from trace.record order by id"
    with psycopg.connect(dsn) as connection:
        return [
            Record(id_, xid, server, place, seq, tuple(by), before, after)
            for id_, xid, server, place, seq, by, before, after in connection.execute(query)
        ]
