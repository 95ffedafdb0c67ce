"""Random walks: each step of `rows` is done by the SQL function of that name, with tokens and runs new and old, and the rows compared."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model import rows as step
from model.rows import FINAL, PRODUCT, Row

if TYPE_CHECKING:
    from random import Random

    from fix_sql import Session

NOBODY = 0  # a process id that no run has
IMAGE = """
    select coalesce(i.state, case when r.seq is not null then 'ready' when s.seq is not null then 'scheduled' end) as place,
      coalesce(i.token, r.token) as token, coalesce(i.copied, false) as copied, i.shipment, i.run, i.worker,
      i.cancelled_at is not null as stop, j.attempts, j.losses, coalesce(i.together, false), coalesce(j.alone, false)
    from bridge.job j left join bridge.inflight i using (seq) left join bridge.ready r using (seq) left join bridge.scheduled s using (seq)
    where j.id = %(id)s
    union all select f.status, null, false, null, null, null, false, f.attempts, f.losses, false, false from bridge.finished f
    where f.id = %(id)s"""
SETTINGS = {"max_losses": PRODUCT.max_losses, "republish_grace": 0}


def prepare(db: Session) -> None:
    """Give a database the bounds of the model, and graces of no time."""
    for name, value in SETTINGS.items():
        db.do("update bridge.setting set value = %s where name = %s", str(value), name)


@dataclass
class Walk:
    """One job, in Postgres and in the model. Numbers of the model are places in lists of what Postgres made; 0 is none."""

    db: Session
    chance: Random
    row: Row = field(default_factory=Row)
    tokens: list[Any] = field(default_factory=lambda: [None])
    shipments: list[Any] = field(default_factory=lambda: [None])
    runs: list[Any] = field(default_factory=lambda: [None])
    begun: list[tuple[int, int, int]] = field(default_factory=lambda: [(0, NOBODY, 0)])  # by run: worker, its child's process id, token
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workers = [uuid.uuid4(), uuid.uuid4()]
        self.queue = f"q{uuid.uuid4().hex[:8]}"
        self.id = self.db.enqueue(queue=self.queue, max_attempts=PRODUCT.max_attempts, backoff=1000)
        self.seq = self.db.one("select seq from bridge.jobs where id = %s", self.id)

    def go(self, steps: int) -> None:
        """Take so many steps, chosen by chance, and compare after each."""
        names = [name.removeprefix("do_") for name in vars(Walk) if name.startswith("do_")]
        for _ in range(steps):
            name = self.chance.choice(names)
            after = getattr(self, f"do_{name}")()
            self.told.append(f"{name}: {self.row} -> {after}")
            self.row = after or self.row
            assert self.image() == self.row._replace(missing=None), "\n".join(self.told)

    def image(self) -> Row:
        """The row as Postgres has it, in the numbers of the model."""
        found = self.db.rows(IMAGE.replace("%(id)s", f"'{self.id}'"))
        assert len(found) == 1, found
        place, token, copied, shipment, run, worker, stop, *counts = found[0]
        worker = step.NOBODY if worker is None else self.workers.index(worker)
        numbers = self.tokens.index(token), copied, self.shipments.index(shipment), self.runs.index(run), worker
        return Row(place, *numbers, None, stop, *counts)

    def any_of(self, known: list[Any], now: int) -> int:
        """The number of the present one, or of any that there ever was."""
        return now if now and self.chance.random() < 0.7 else self.chance.randrange(len(known))

    def any_run(self) -> tuple[int, int]:
        """A run, and the delivery that it is of; one whose start a crash forgot may be of any."""
        run = self.any_of(self.runs, self.row.run)
        return run, self.begun[run][2] if run else self.any_of(self.tokens, self.row.token)

    # Drainers

    def do_claim(self) -> Row | None:
        shipment = uuid.uuid4()
        claimed = self.db.rows("select token::uuid from bridge.claim(%s, %s, %s)", self.db.drainer, self.queue, shipment)
        after = step.claim(self.row, PRODUCT, len(self.tokens), len(self.shipments))
        assert bool(claimed) == (after is not None)
        if after:
            self.shipments.append(shipment)
            if after.token == len(self.tokens):
                self.tokens.append(claimed[0][0])
        return after

    def do_mark_published(self) -> Row | None:
        number = self.any_of(self.shipments, self.row.shipment)
        self.db.do("select bridge.mark_published(%s, array[%s::bigint])", self.shipments[number], self.seq)
        return step.mark_published(self.row, PRODUCT, number)

    def do_unclaim(self) -> Row | None:
        number = self.any_of(self.shipments, self.row.shipment)
        self.db.do("select bridge.unclaim(array[%s::bigint], %s)", self.seq, self.shipments[number])
        return step.unclaim(self.row, PRODUCT, number or None)

    def do_republish(self) -> Row | None:
        number = self.any_of(self.tokens, self.row.token)
        shipment, after = uuid.uuid4(), None
        self.db.do(
            "update bridge.inflight set missing_since = clock_timestamp() - interval '1 h' where seq = %s and state = 'published'", self.seq
        )
        self.db.do("update bridge.look set answered_at = clock_timestamp()")
        self.db.do("select bridge.republish(%s, %s, array[%s::uuid])", self.db.drainer, shipment, self.tokens[number])
        self.db.do("update bridge.inflight set missing_since = null where seq = %s", self.seq)
        if number and number == self.row.token:
            after = step.republish(self.row._replace(missing=()), PRODUCT, len(self.shipments))
        if after:
            self.shipments.append(shipment)
        return after

    # Workers

    def do_start(self) -> Row | None:
        number, worker, pid = self.any_of(self.tokens, self.row.token), self.chance.randrange(2), len(self.runs)
        run = self.db.one("select bridge.start(%s, %s, %s, %s)", self.seq, self.tokens[number], self.workers[worker], pid)
        after = step.start(self.row, PRODUCT, number, len(self.runs), worker) if number else None
        assert (run is not None) == (after is not None)
        if after:
            self.runs.append(run)
            self.begun.append((worker, pid, number))
        return after

    def do_start_many(self) -> Row | None:
        """In a slice of its own, or with another that is refused."""
        number, worker, pid, run = self.any_of(self.tokens, self.row.token), self.chance.randrange(2), len(self.runs), uuid.uuid4()
        together = self.chance.random() < 0.7
        seqs, tokens, runs = ([mine, *[another] * together] for mine, another in (
            (self.seq, self.seq + 1_000_000), (self.tokens[number], uuid.uuid4()), (run, uuid.uuid4()),
        ))  # fmt: skip
        started = self.db.one("select bridge.start_many(%s, %s, %s, %s, %s)", seqs, tokens, self.workers[worker], pid, runs)
        after = step.start(self.row, PRODUCT, number, len(self.runs), worker, together=together) if number else None
        assert (started != []) == (after is not None)
        if after:
            self.runs.append(run)
            self.begun.append((worker, pid, number))
        return after

    def do_start_again(self) -> Row | None:
        """The fence is asked anew about a run that there was."""
        run = self.any_of(self.runs, self.row.run)
        worker, pid, _ = self.begun[run]
        if not run or self.row.place != "running":
            return None
        columns = [self.seq], [self.tokens[self.row.token]], self.workers[worker], pid, [self.runs[run]]
        started = self.db.one("select bridge.start_many(%s, %s, %s, %s, %s)", *columns)
        after = step.start_again(self.row, run)
        assert (started != []) == (after == self.row)
        return after

    def do_unbundle(self) -> Row | None:
        run, token, alone = self.any_of(self.runs, self.row.run), self.any_of(self.tokens, self.row.token), self.chance.random() < 0.5
        worker, pid, _ = self.begun[run]
        self.db.do("select bridge.unbundle(array[%s::uuid], %s, %s, %s)", self.tokens[token], self.workers[worker], pid, alone)
        return step.unbundle(self.row, PRODUCT, token, run, alone=alone) if token else None

    def do_finish_many(self) -> Row | None:
        run, token = self.any_run()
        columns = [self.seq], [self.runs[run] or uuid.uuid4()], [self.tokens[token]], [self.id], ["1"], [None]
        self.db.do("select bridge.finish_many(%s, %s, %s, %s, %s, %s::text[])", *columns)
        return step.finish(self.row, PRODUCT, token, run or -1)

    def do_finish(self) -> Row | None:
        run, token = self.any_run()
        call = "select bridge.finish(%s, %s, 'succeeded', p_token => %s)"
        self.db.do(call, self.seq, self.runs[run] or uuid.uuid4(), self.tokens[token])
        return step.finish(self.row, PRODUCT, token, run or -1)

    def do_fail(self) -> Row | None:
        run, token = self.any_run()
        call = "select bridge.fail(%s, %s, '{}', p_token => %s)"
        self.db.do(call, self.seq, self.runs[run] or uuid.uuid4(), self.tokens[token])
        return step.fail(self.row, PRODUCT, token, run or -1)

    def do_lose(self) -> Row | None:
        """A main process, of a child that had begun a run, or none."""
        run, token = self.any_of(self.runs, self.row.run), self.any_of(self.tokens, self.row.token)
        worker, pid, _ = self.begun[run]
        self.db.do("select bridge.lose(%s, %s, 'killed', %s, %s)", self.seq, self.tokens[token], self.workers[worker], pid)
        return step.lose(self.row, PRODUCT, token, run=run) if token else None

    def do_sweep_loses(self) -> Row | None:
        token, worker = self.any_of(self.tokens, self.row.token), self.chance.randrange(2)
        self.db.do("select bridge.lose(%s, %s, 'its worker died', %s)", self.seq, self.tokens[token], self.workers[worker])
        return step.lose(self.row, PRODUCT, token, worker=worker) if token else None

    def do_release(self) -> Row | None:
        token = self.any_of(self.tokens, self.row.token)
        self.db.do("select bridge.release(array[%s::uuid])", self.tokens[token])
        return step.release(self.row, token) if token else None

    def do_stop_worker(self) -> Row | None:
        worker = self.chance.randrange(2)
        self.db.do("select bridge.stop_worker(%s)", self.workers[worker])
        return step.break_off(self.row, worker)

    def do_expire(self) -> Row | None:
        token, worker = self.any_of(self.tokens, self.row.token), self.chance.randrange(2)
        self.db.do("select bridge.end_delivery(%s, %s, %s, 'expired', '{}')", self.seq, self.tokens[token], self.workers[worker])
        return step.expire(self.row, PRODUCT, token, worker) if token else None

    # People, and the tick

    def do_cancel(self) -> Row | None:
        if self.chance.random() < 0.8:  # else most walks end soon
            return None
        self.db.do("select bridge.cancel(%s)", self.id)
        return step.cancel(self.row)

    def do_tick(self) -> Row | None:
        if self.row.place in FINAL:
            return None
        for table in ("scheduled", "job"):
            self.db.do(f"update bridge.{table} set run_at = clock_timestamp() where seq = %s", self.seq)
        self.db.do("select bridge.tick('test')")
        return step.come_due(self.row)
