"""Many sessions at once that call whatever there is on shared jobs, by chance; then one looks whether all of it still holds together."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import psycopg
from fix_sql import Session
from races_run import PATIENCE
from races_table import CALLS
from races_world import NUMBERED, NUMBERS, STAGES, Maker

SESSIONS = 12
OPEN = 0.01  # seconds, the longest that a session leaves a transaction open by itself
# What calls may take from another world.
SHARED = ("job", "second", "child", "batch", "queue", "elsewhere", "key", "limit", "schedule", "chord")
# What no time brings forward any more; each query gives the rows that wait for nothing.
STUCK = {
    "a blocked job waits for somebody": """
        select b.seq from bridge.blocked b where not exists (select from bridge.dependency d where d.child = b.seq)
          and not exists (select from bridge.replaced r where r.seq = b.seq)""",
    "a parent that is waited for lives, or is to be redriven": """
        select d.* from bridge.dependency d join bridge.blocked b on b.seq = d.child where b.on_failure is distinct from 'wait'
          and not exists (select from bridge.job j where j.seq = d.parent)""",
    "a sealed batch without live jobs has ended": """
        select b.id from bridge.batch b where b.sealed_at is not null and b.ended_at is null
          and not exists (select from bridge.job j where j.batch = b.id)""",
    "a mark of a run that replaced itself is of a live job": """
        select r.seq from bridge.replaced r where not exists (select from bridge.job j where j.seq = r.seq)""",
    "the list of what ends could not settle is empty": "select s.* from bridge.second_look s",
}
OTHERS = "pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


class Storm:
    """Jobs of all stages, and sessions that fall upon them."""

    def __init__(self, dsn: str, seed: int, worlds: int) -> None:
        self.dsn, self.seed = dsn, seed
        self.maker = Maker(dsn)
        stages = list(STAGES)
        self.worlds = [self.maker.make(stages[number % len(stages)]) for number in range(worlds)]
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []

    def rage(self, seconds: float) -> None:
        """Have all sessions call for so long, and end."""
        until = time.monotonic() + seconds
        pool = ThreadPoolExecutor(max_workers=SESSIONS)
        raging = [pool.submit(self._one, number, until) for number in range(SESSIONS)]
        late = wait(raging, seconds + 2 * PATIENCE).not_done
        if late:
            self.faults += [f"waits still: {row}" for row in self.maker.db.rows(f"select pid, pg_blocking_pids(pid), query from {OTHERS}")]
            self.maker.db.do(f"select pg_terminate_backend(pid) from {OTHERS}")
        pool.shutdown()
        for done in raging:
            done.result()

    def settle(self) -> None:
        """Let the tick do what it left to the next one."""
        for _ in range(3):
            self.maker.db.do("select bridge.tick('storm')")

    def stuck(self) -> dict[str, list[tuple[Any, ...]]]:
        """What waits for nothing, by the rule that it breaks."""
        found = {rule: self.maker.db.rows(query) for rule, query in STUCK.items()}
        return {rule: rows for rule, rows in found.items() if rows}

    def lost(self) -> list[Any]:
        """Jobs that were made before it all, and are not there."""
        made = [world.named[name] for world in self.worlds for name in ("job", "second", "child", "parent")]
        return self.maker.db.rows("select unnest(%s::uuid[]) except select id from bridge.jobs", made)

    def _one(self, number: int, until: float) -> None:
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311 - it is to be repeatable
        session = Session(self.dsn)
        try:
            while time.monotonic() < until and not self.faults:
                self._call(session, chance)
        finally:
            session.connection.close()

    def _call(self, session: Session, chance: random.Random) -> None:
        name = chance.choice(list(CALLS))
        named = self._named(session, chance)
        try:
            with session.connection.transaction(force_rollback=chance.random() < 0.1):
                session.connection.execute(f"select {CALLS[name].sql}".encode(), named)
                if chance.random() < 0.2:
                    time.sleep(chance.uniform(0, OPEN))
        except psycopg.Error as error:
            self.answers[f"{error.sqlstate}"] += 1
            if not (error.sqlstate or "").startswith("JB"):
                self.faults.append(f"{name}: {error.sqlstate} {error}")
        else:
            self.answers["done"] += 1

    def _named(self, session: Session, chance: random.Random) -> dict[str, Any]:
        """The names of a world, some of them of another; with what the job has in flight by now."""
        named = dict(chance.choice(self.worlds).named) | {"new": uuid.uuid4()}
        if chance.random() < 0.3:
            other = chance.choice(self.worlds).named
            named |= {name: other[name] for name in chance.sample(SHARED, 3)}
        row = session.connection.execute(NUMBERS.encode(), named).fetchone()
        return named | dict(zip(NUMBERED, row, strict=True)) if row else named
