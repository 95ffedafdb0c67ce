"""How two sessions race: the first holds what it has done open while the second does its own; then one looks what came of it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from fix_sql import Session
from races_world import Maker, World

if TYPE_CHECKING:
    from concurrent.futures import Future

    from races_table import Call

PATIENCE = 30  # seconds for what waits for nobody any more
FIRST_LOOK = 0.002  # seconds that a session gets before one asks whether it waits; each time twice as long, on a busy machine
LAST_LOOK = 0.05


class Outcome(NamedTuple):
    """What both sessions were told, and what became of the world."""

    first: Any
    second: Any
    world: dict[str, Any]

    def unlike(self, other: Outcome) -> str:
        """Where this is not what the other is, each in its own words."""
        mine, theirs = (told.world | {"first": told.first, "second": told.second} for told in (self, other))
        parts = [part for part in sorted(mine.keys() | theirs.keys()) if mine.get(part) != theirs.get(part)]
        return ", ".join(f"{part}: {mine.get(part)} / {theirs.get(part)}" for part in parts)


class Met(NamedTuple):
    """What became of two sessions at once; `waited` says whether the second had to wait for the first."""

    outcome: Outcome
    waited: bool


class Races:
    """Four sessions on one database: one makes worlds and looks at them, two race, one watches who waits for whom."""

    def __init__(self, dsn: str) -> None:
        self.maker = Maker(dsn)
        self._first, self._second, self._watch = Session(dsn), Session(dsn), Session(dsn)
        self._pid = self._second.one("select pg_backend_pid()")
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._serial: dict[tuple[str, ...], Outcome] = {}

    def close(self) -> None:
        self._pool.shutdown()
        for session in (self.maker.db, self._first, self._second, self._watch):
            session.connection.close()

    def one_by_one(self, stage: str, *calls: Call) -> Outcome:
        """What calls give that come one after the other, each committed before the next; tried once, it is always the same."""
        order = (stage, *(call.sql for call in calls))
        if order not in self._serial:
            world = self.maker.make(stage)
            told = [self._told(self._first, call, world) for call in calls]
            self._serial[order] = Outcome(told[0], told[-1], self._seen(world))
        return self._serial[order]

    def untouched(self, stage: str) -> dict[str, Any]:
        """A world in which nothing happens."""
        return self._seen(self.maker.make(stage))

    def at_once(self, stage: str, first: Call, second: Call, *, commits: bool = True) -> Met:
        """Have the second call come while the first is done and not committed; then commit that, or roll it back."""
        world = self.maker.make(stage)
        self._first.do("begin")
        told = self._told(self._first, first, world)
        answer = self._pool.submit(self._told, self._second, second, world)
        waited = is_waiting(answer, self._watch, self._pid)
        self._first.do("commit" if commits else "rollback")
        return Met(Outcome(told, answer.result(PATIENCE), self._seen(world)), waited)

    def _seen(self, world: World) -> dict[str, Any]:
        """What became of a world, in its own words."""
        return dict(json.loads(plain(json.dumps(self.maker.look(world)), world)))

    def _told(self, session: Session, call: Call, world: World) -> Any:
        """What a session is told, without what differs from time to time."""
        try:
            rows = session.connection.execute(f"select {call.sql}".encode(), world.named).fetchall()
        except psycopg.Error as error:
            return f"error {error.sqlstate}: {plain(error.diag.message_primary or '', world)}"
        return plain(repr(rows), world)


def plain(text: str, world: World) -> str:
    """A text in which the ids and numbers of a world have its words for them, and others none."""
    for name, value in world.named.items():
        if not isinstance(value, int):
            text = text.replace(str(value), f"<{name}>")
    text = re.sub(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", "<uuid>", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T][\d:.]+(\+\d\d(:\d\d)?)?|datetime\([^)]*\)", "<moment>", text)
    text = re.sub(r"'(matched|skipped)': \d+", r"'\1': <number>", text)  # of what a filter chose, some may have moved on meanwhile
    return re.sub(r"job number \d+|number \d+", "job <number>", text)


def is_waiting(answer: Future[Any], watch: Session, pid: int) -> bool:
    """Wait until a session has its answer (false), or waits for another (true)."""
    look = FIRST_LOOK
    while True:
        try:
            answer.result(look)
        except TookTooLong:
            if watch.one("select cardinality(pg_blocking_pids(%s)) > 0", pid):
                return True
            look = min(2 * look, LAST_LOOK)
        else:
            return False
