"""The laboratory itself: its checker finds each sin that is planted, and a short fixed run of it finds none."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fix_sql import Session
from laboratory import checker, facts
from laboratory.faults import MISSED
from laboratory.ledger import Ledger, Wish
from laboratory.tasks import EFFECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from bridge.testing.databases import Databases

CHILD = 7  # pid of the process that all runs are in
PLANTED: dict[str, Callable[[Stage], None]] = {}
BROKEN: dict[str, set[str]] = {}  # by the plant's name: rules


class Stage:
    """Both databases of a world, without its processes: what they would do is done by hand."""

    def __init__(self, dsn: str, ledger: Ledger) -> None:
        self.db, self.ledger = Session(dsn), ledger
        for connection in self.connections:
            connection.execute("begin")
        self.db.do(EFFECTS)
        ledger.create()
        self.messages: int | None = 0
        self.ends: list[tuple[str, int, str]] = []

    @property
    def connections(self) -> tuple[psycopg.Connection[Any], psycopg.Connection[Any]]:
        return self.db.connection, self.ledger.connection()

    def ask(self, lab: int, outcome: str = "committed", **more: Any) -> None:
        self.ledger.ask([Wish(lab, "plain", "sql", **more)])
        self.ledger.tell([lab], outcome)

    def job(self, lab: int, task: str = "lab.work", *, options: dict[str, Any] | None = None, **more: Any) -> Any:
        self.ask(lab, **more)
        return self.db.enqueue(task, kwargs={"lab": lab}, **(options or {}))

    def note(self, lab: int, run: Any, event: str, slot: str = "worker1", delivery: Any = None) -> None:
        words = "insert into event (lab, task_id, run, delivery, slot, pid, event) values (%s, '', %s, %s, %s, %s, %s)"
        self.ledger.do(words, (lab, run, delivery, slot, CHILD, event))

    def run(self, lab: int, *, ends: bool = True, slot: str = "worker1") -> tuple[Any, Any]:
        """Have the only ready job run, as far as asked."""
        claim, run = self.db.run()
        self.note(lab, run, "start", slot, claim.token)
        if ends:
            self.note(lab, run, "end", slot, claim.token)
            self.db.finish(claim, run, result=lab)
        return claim, run

    def keep_aside(self, claim: Any, run: Any) -> None:
        """Have a superseded run of a job that has ended tell its outcome."""
        self.db.do("select bridge.keep_late(%s, %s, null, null)", claim.seq, run)

    def lose(self, claim: Any) -> None:
        self.db.do("select bridge.lose(%s, %s, 'its process is gone')", claim.seq, claim.token)

    def sins(self) -> list[checker.Sin]:
        known = facts.facts_of(*self.connections, slack=1.0)
        return checker.check(replace(known, messages=self.messages, ends=self.ends))


@pytest.fixture(scope="module")
def both(databases: Databases, template: str) -> Iterator[tuple[str, str]]:
    """The bridge's database and the witness."""
    names = databases.create(template), databases.create()
    yield databases.server.dsn_of(names[0]), databases.server.dsn_of(names[1])
    for name in names:
        databases.drop(name)


@pytest.fixture
def stage(both: tuple[str, str]) -> Iterator[Stage]:
    """In transactions that are rolled back."""
    stage = Stage(both[0], Ledger(both[1]))
    yield stage
    for connection in stage.connections:
        connection.close()


def plants(rule: Callable[..., Any], *also: Callable[..., Any]) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """What breaks this rule, and no other but those that it cannot help to break."""

    def register(plant: Callable[[Stage], None]) -> Callable[[Stage], None]:
        PLANTED[f"{rule.__name__}-{plant.__name__}"] = plant
        BROKEN[plant.__name__] = {one.__name__ for one in (rule, *also)}
        return plant

    return register


@plants(checker.lost)
def no_row(stage: Stage) -> None:
    stage.ask(1)


@plants(checker.lost)
def next_step_missing(stage: Stage) -> None:
    stage.job(1)
    stage.run(1)
    stage.ask(2, parents=(1,))


@plants(checker.made_though_refused)
def rolled_back(stage: Stage) -> None:
    stage.job(1, outcome="refused", expected=())
    stage.run(1)


@plants(checker.made_twice)
def two_jobs(stage: Stage) -> None:
    stage.job(1)
    stage.run(1)
    stage.db.do("update bridge.finished set run = null")
    stage.db.do("update bridge.finished set status = 'cancelled'")
    stage.ledger.do("update asked set expected = '{cancelled,succeeded}'")
    stage.db.enqueue("lab.work", kwargs={"lab": 1})
    stage.db.do("select bridge.cancel(id) from bridge.jobs where finished_at is null")
    stage.ledger.do("delete from event")


@plants(checker.stuck)
def never_ran(stage: Stage) -> None:
    stage.job(1)


@plants(checker.wrong_end)
def failed_though_well(stage: Stage) -> None:
    stage.job(1)
    claim, run = stage.run(1, ends=False)
    stage.db.fail(claim, run, final=True)


@plants(checker.wrong_end)
def too_few_attempts(stage: Stage) -> None:
    stage.job(1, expected=("failed",), attempts=3)
    claim, run = stage.run(1, ends=False)
    stage.db.fail(claim, run, final=True)


@plants(checker.wrong_end)
def result_of_another(stage: Stage) -> None:
    stage.job(1)
    claim, run = stage.run(1, ends=False)
    stage.note(1, run, "end")
    stage.db.finish(claim, run, result=2)


@plants(checker.out_of_place)
def nowhere(stage: Stage) -> None:
    stage.job(1)
    stage.run(1)
    stage.db.do("insert into bridge.ready (queue, rank, seq, size) values ('celery', 0, 4711, 1)")


@plants(checker.started_twice)
def same_run(stage: Stage) -> None:
    stage.job(1)
    _, run = stage.run(1)
    stage.note(1, run, "start")


@plants(checker.started_twice, checker.ran_again)
def two_of_a_delivery(stage: Stage) -> None:
    stage.job(1)
    claim, _ = stage.run(1)
    stage.note(1, other := uuid.uuid4(), "start", delivery=claim.token)
    stage.keep_aside(claim, other)


@plants(checker.rows_and_witness_differ)
def in_no_row(stage: Stage) -> None:
    stage.job(1, expected=("cancelled",))
    stage.note(1, uuid.uuid4(), "start")
    stage.db.do("select bridge.cancel(id) from bridge.jobs")


@plants(checker.rows_and_witness_differ)
def failed_unseen(stage: Stage) -> None:
    stage.job(1, expected=("failed",))
    claim, run = stage.db.run()
    stage.db.fail(claim, run, final=True)


@plants(checker.completed_twice, checker.rows_and_witness_differ)
def two_ends(stage: Stage) -> None:
    identity = stage.job(1)
    claim, _ = stage.run(1)
    words = "insert into bridge.attempt (id, seq, attempt, run, ended_at, outcome) values (%s, %s, 1, %s, clock_timestamp(), 'succeeded')"
    stage.db.do(words, identity, claim.seq, uuid.uuid4())


@plants(checker.succeeded_without_a_run, checker.rows_and_witness_differ)
def unseen(stage: Stage) -> None:
    stage.job(1)
    claim, run = stage.db.run()
    stage.db.finish(claim, run, result=1)


@plants(checker.ran_again)
def lost_without_a_reason(stage: Stage) -> None:
    stage.job(1)
    claim, _ = stage.run(1, ends=False)
    stage.lose(claim)
    stage.run(1)


@plants(checker.ran_again)
def lost_in_another_worker(stage: Stage) -> None:
    stage.ledger.strike(1, "a-kill")
    stage.ledger.cost(1, ["worker2"])
    lost_without_a_reason(stage)


@plants(checker.ran_again)
def lost_to_an_order_that_nobody_obeyed(stage: Stage) -> None:
    stage.ledger.strike(1, "child-kill-started")
    stage.ledger.cost(1, ["worker1"], most=1)
    stage.ledger.became(1, MISSED)
    lost_without_a_reason(stage)


@plants(checker.ran_again)
def lost_in_another_process(stage: Stage) -> None:
    stage.ledger.strike(1, "child-kill")
    stage.ledger.cost(1, ["worker1"], pids=[CHILD + 1])
    lost_without_a_reason(stage)


@plants(checker.more_ran_again)
def lost_two_by_one_kill(stage: Stage) -> None:
    stage.ledger.strike(1, "a-kill")
    stage.ledger.cost(1, ["worker1"], most=1)
    for lab in (1, 2):
        stage.job(lab)
        claim, _ = stage.run(lab, ends=False)
        stage.lose(claim)
        stage.run(lab)


@plants(checker.ran_after_cancel, checker.rows_and_witness_differ)
def started_late(stage: Stage) -> None:
    _cancel_and_run(stage, 1)


def _cancel_and_run(stage: Stage, lab: int) -> None:
    identity = stage.job(lab, expected=("cancelled",))
    number = stage.ledger.operate(lab, "cancel")
    stage.ledger.answer(number, str(stage.db.one("select bridge.cancel(%s)", identity)))
    stage.note(lab, uuid.uuid4(), "start")


@plants(checker.out_of_order)
def before_its_parent(stage: Stage) -> None:
    stage.job(1, parents=(2,))
    stage.run(1)
    stage.job(2)
    stage.run(2)


@plants(checker.beside_each_other)
def two_of_a_key(stage: Stage) -> None:
    stage.job(1, options={"serial_key": "s"})
    claim, run = stage.run(1, ends=False)
    stage.job(2, options={"serial_key": "s"})
    stage.note(2, other := uuid.uuid4(), "start")
    stage.note(1, run, "end")
    stage.db.finish(claim, run, result=1)
    claim, run = stage.db.run()
    stage.ledger.do("update event set run = %s where run = %s", (run, other))
    stage.note(2, run, "end")
    stage.db.finish(claim, run, result=2)


@plants(checker.over_the_limit)
def three_at_once(stage: Stage) -> None:
    ran = []
    for lab in (1, 2, 3):
        stage.job(lab, "lab.limited")
        ran.append((lab, *stage.run(lab, ends=False)))
    for lab, claim, its_run in ran:
        stage.note(lab, its_run, "end")
        stage.db.finish(claim, its_run, result=lab)


@plants(checker.faster_than_its_rate)
def seven_in_no_time(stage: Stage) -> None:
    for lab in range(1, 8):
        stage.job(lab, "lab.rated")
        stage.run(lab)
    stage.ledger.do("update event set at = (select min(at) from event)")


@plants(checker.wrong_effect)
def no_effect(stage: Stage) -> None:
    stage.job(1, "lab.transfer")
    stage.run(1)


@plants(checker.wrong_effect)
def effect_of_another(stage: Stage) -> None:
    stage.job(1, "lab.transfer")
    _, run = stage.run(1)
    for one in (run, uuid.uuid4()):
        stage.db.do("insert into effect values (1, %s)", one)


@plants(checker.left_in_the_broker)
def messages(stage: Stage) -> None:
    stage.messages = 3


@plants(checker.left_in_the_broker)
def silent_broker(stage: Stage) -> None:
    stage.messages = None


@plants(checker.ended_by_itself)
def crashed(stage: Stage) -> None:
    stage.ends = [("worker1", 1, "Traceback")]


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checker_finds_a_planted_sin_and_nothing_else(stage: Stage, planted: str) -> None:
    PLANTED[planted](stage)
    found = stage.sins()
    assert {sin.rule for sin in found} == BROKEN[planted.partition("-")[2]], found


def test_every_rule_can_fail() -> None:
    assert {name.partition("-")[0] for name in PLANTED} == set(checker.RULES)


def test_the_checker_finds_no_sin_where_a_hit_worker_lost_a_run(stage: Stage) -> None:
    stage.ledger.strike(1, "a-kill")
    stage.ledger.cost(1, ["worker1"], pids=[CHILD])
    lost_without_a_reason(stage)
    assert stage.sins() == []


def test_a_run_that_two_strikes_may_have_cost_is_charged_to_the_one_that_has_room(stage: Stage) -> None:
    stage.ledger.strike(1, "a-kill-of-both")
    stage.ledger.cost(1, ["worker1", "worker2"], most=1)
    stage.ledger.strike(2, "a-kill")
    stage.ledger.cost(2, ["worker1"], most=1)
    for lab, slot in ((1, "worker1"), (2, "worker2")):
        stage.job(lab)
        claim, _ = stage.run(lab, ends=False, slot=slot)
        stage.lose(claim)
        stage.run(lab)
    assert stage.sins() == []


def test_what_an_asynchronous_failover_forgets_is_no_sin_and_what_it_does_not_is_one(stage: Stage) -> None:
    stage.ask(1)
    failed = uuid.uuid4()  # its failure was committed a moment later
    stage.note(8, failed, "start", "worker2")
    stage.note(8, failed, "raised", "worker2")
    stage.ledger.strike(1, "failover-async")
    stage.ledger.cost(1, ["worker1"], tail=True)
    stage.ask(2)
    _cancel_and_run(stage, 3)
    forgotten = uuid.uuid4()
    stage.note(4, forgotten, "start")
    stage.note(4, forgotten, "end")
    stage.job(5, parents=(4,))
    stage.run(5)
    stage.job(4)
    stage.run(4)
    stage.job(8)
    stage.run(8)
    for lab, ended in ((6, "raised"), (7, "end")):
        retried = uuid.uuid4()
        stage.note(lab, retried, "start", "worker2")
        stage.note(lab, retried, ended, "worker2")
        stage.job(lab)
        stage.run(lab)
    assert [(sin.rule, sin.lab) for sin in stage.sins()] == [("lost", 1), ("ran_again", 7)]


def test_a_sin_is_told_with_the_history_of_its_job(stage: Stage) -> None:
    lost_without_a_reason(stage)
    (sin,) = stage.sins()
    told = "\n".join(sin.history)
    assert "asked for: plain by sql, committed" in told
    assert told.count("witness: run") == told.count("rows: attempt") == 2
