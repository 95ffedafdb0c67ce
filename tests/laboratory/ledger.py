"""The witness: what was asked for and what tasks really did, in a database that no fault touches and the bridge knows nothing of."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

DSN = "LAB_LEDGER"  # the environment's word for where it is
SLOT = "LAB_SLOT"  # and for which of the world's processes this is

# `lab` numbers what the load asks for; every job carries its number in kwargs.lab, so that a row, a run and a wish are one story also
# where the caller never learnt the job's id.
TABLES = """
create table asked (
  lab      bigint primary key,
  kind     text not null,               -- of the load, see load.py
  door     text not null,
  expected text[] not null,             -- statuses that it may end with
  parents  bigint[] not null default '{}',  -- numbers of what must have ended before it starts
  attempts integer,                     -- that it must have needed; null: not known
  asked_at timestamptz not null default clock_timestamp(),
  outcome  text,                        -- committed, refused, skipped (its unique key is another's); null: nobody knows, it may exist
  told_at  timestamptz
);
create table event (
  id      bigint generated always as identity primary key,
  lab     bigint not null,
  task_id text not null,
  run     uuid not null,
  delivery text,                        -- the token that the run started with
  slot    text not null,                -- which worker of the world
  pid     integer not null,
  event   text not null,                -- start, end, raised
  at      timestamptz not null default clock_timestamp()
);
create index event_lab on event (lab);
create index event_run on event (run);
create table operated (
  id     bigint generated always as identity primary key,
  lab    bigint not null,
  action text not null,                 -- cancel, retry
  answer text,                          -- null: nobody knows
  at     timestamptz not null default clock_timestamp(),
  told_at timestamptz
);
create table strike (
  id       integer primary key,
  fault    text not null,
  again    text[] not null,             -- workers whose runs may be lost by it
  most     integer,                     -- so many of them; null: no bound
  pids     integer[],                   -- of the processes that they ran in; null: not known
  tail     boolean not null,            -- what was committed since may be missing
  became   text not null default 'struck',  -- of it, see faults.BECAME
  at       timestamptz not null default clock_timestamp(),
  mended_at timestamptz
)"""


@dataclass(frozen=True)
class Wish:
    """One job that the load is about to ask for."""

    lab: int
    kind: str
    door: str
    expected: tuple[str, ...] = ("succeeded",)
    parents: tuple[int, ...] = ()
    attempts: int | None = None


class Ledger:
    """A connection to the witness for each thread; every word is committed when a method returns."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._held: dict[tuple[int, int], psycopg.Connection[Any]] = {}

    @classmethod
    def here(cls) -> Ledger:
        """That of the world that this process belongs to."""
        return cls(os.environ[DSN])

    def create(self) -> None:
        """Make its tables in an empty database."""
        self.do(TABLES)

    def do(self, query: str, params: Sequence[Any] = ()) -> None:
        """Run a statement."""
        self.connection().execute(query.encode(), params or None)

    def all(self, query: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.connection().execute(query.encode(), params or None).fetchall()

    def one(self, query: str, params: Sequence[Any] = ()) -> Any:
        """The first value of a query."""
        rows = self.all(query, params)
        return rows[0][0] if rows else None

    def connection(self) -> psycopg.Connection[Any]:
        # Of this process and thread: a pool child must not talk through its parent's.
        key = (os.getpid(), threading.get_ident())
        held = self._held.get(key)
        if held is None or held.closed:
            held = self._held[key] = psycopg.connect(self.dsn, autocommit=True, connect_timeout=10)
        return held

    def close(self) -> None:
        """Close its connections."""
        for held in self._held.values():
            held.close()

    # What the load writes.

    def ask(self, wishes: Iterable[Wish]) -> None:
        """Before the call: these are going to be asked for."""
        rows = [(one.lab, one.kind, one.door, list(one.expected), list(one.parents), one.attempts) for one in wishes]
        with self.connection().cursor() as cursor:
            words = "insert into asked (lab, kind, door, expected, parents, attempts) values (%s, %s, %s, %s, %s, %s)"
            cursor.executemany(words, rows)

    def tell(self, labs: Sequence[int], outcome: str) -> None:
        """After the call: this is what became of them, for certain."""
        self.do("update asked set outcome = %s, told_at = clock_timestamp() where lab = any(%s)", (outcome, list(labs)))

    def operate(self, lab: int, action: str) -> int:
        """Before an operator does something to a job; `answer` names the number that this returns."""
        return int(self.one("insert into operated (lab, action) values (%s, %s) returning id", (lab, action)))

    def answer(self, number: int, answer: str) -> None:
        """After: what the bridge said."""
        self.do("update operated set answer = %s, told_at = clock_timestamp() where id = %s", (answer, number))

    # What tasks write.

    def note(self, lab: int, task_id: str, run: Any, event: str) -> None:
        """One line of a run (bridge.worker.fence.Run): start, end or raised."""
        words = "insert into event (lab, task_id, run, delivery, slot, pid, event) values (%s, %s, %s, %s, %s, %s, %s)"
        values = (lab, task_id, run.id, run.delivery.token, os.environ.get(SLOT, "?"), os.getpid(), event)
        for _ in range(3):
            try:
                return self.do(words, values)
            except psycopg.OperationalError:
                time.sleep(0.1)
        return self.do(words, values)

    # What the runner writes.

    def strike(self, number: int, fault: str) -> None:
        """A fault is about to strike."""
        self.do("insert into strike (id, fault, again, tail) values (%s, %s, '{}', false)", (number, fault))

    def cost(
        self, number: int, again: Iterable[str], most: int | None = None, *, tail: bool = False, pids: Collection[int] | None = None
    ) -> None:
        """What it may cost."""
        values = (sorted(again), most, tail, None if pids is None else sorted(pids), number)
        self.do("update strike set again = %s, most = %s, tail = %s, pids = %s where id = %s", values)

    def became(self, number: int, what: str) -> None:
        """What is known of whether it met anything, a word of `faults.BECAME`."""
        self.do("update strike set became = %s where id = %s", (what, number))

    def mended(self, number: int) -> None:
        """Its cause is gone."""
        self.do("update strike set mended_at = clock_timestamp() where id = %s", (number,))
