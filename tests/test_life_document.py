"""docs/life-of-a-job.md says who may move a job from where to where; every function is tried on a job in every place."""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from fix_servers import ROOT
from life_model import PLACES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

PAGE = (ROOT / "docs" / "life-of-a-job.md").read_text(encoding="utf-8")
FINAL = {"succeeded", "failed", "cancelled", "expired"}
Step = tuple[str, str, str]  # from, to, by


def documented() -> set[Step]:
    """Every step that the table has: each place of the first column to each of the second."""
    rows = PAGE.partition("| from | to | by | who, and when |")[2].partition("\n\n")[0].strip().splitlines()[1:]
    steps = set()
    for row in rows:
        before, after, by = (re.findall(r"`(\w+)`", cell) for cell in row.strip("|").split("|")[:3])
        steps |= {(one, other, name) for one in before or ["nothing"] for other in after for name in by}
    return steps


@dataclass(frozen=True)
class Job:
    """A job in some place, with what its messages and its run know of it."""

    id: uuid.UUID
    seq: int
    queue: str
    token: Any = None
    run: Any = None
    parent: uuid.UUID | None = None


def place(db: Session, identity: uuid.UUID) -> str:
    """Where a job is; queued has two places."""
    status = str(db.one(f"select p.place from ({PLACES}) p where id = %s", identity))
    return "ready" if status == "queued" else status


class Makers:
    """Each makes a job in one place; `ran` is one that an attempt has begun of."""

    def __init__(self, db: Session, *, ran: bool) -> None:
        self.db, self.ran = db, ran

    def ready(self, **options: Any) -> Job:
        queue = f"q{uuid.uuid4().hex[:8]}"
        identity = self.db.enqueue(queue=queue, **{"backoff": 0, "max_attempts": 3, **options})
        job = Job(identity, self.db.one("select seq from bridge.jobs where id = %s", identity), queue)
        if self.ran:
            claim, run = self.db.run(queue=queue)
            self.db.fail(claim, run)
        return job

    def scheduled(self) -> Job:
        if self.ran:
            return self.ready(backoff=3600)
        return self.ready(delay="1 h")

    def held(self) -> Job:
        """Ready, and a limit holds it back: the page says that it goes the ways of ready."""
        job = self.ready()
        self.db.do("select bridge.set_limit(%s, queue => %s, concurrency => 0)", job.queue, job.queue)
        self.db.claim(queue=job.queue)
        assert self.db.rows("select from bridge.held where seq = %s", job.seq)
        return job

    def blocked(self) -> Job:
        if self.ran:
            job = self.running()
            self.db.do("select bridge.mark_replaced(%s, %s, %s)", job.seq, job.run, job.token)
            self.db.do("select bridge.step_aside(%s, %s, %s)", job.seq, job.run, job.token)
            return job
        parent = self.db.enqueue(queue="parents", delay="1 h")
        job = self.ready(depends_on=[parent])
        return Job(job.id, job.seq, job.queue, parent=parent)

    def claimed(self) -> Job:
        job = self.ready()
        claim = self.db.claim(queue=job.queue)[0]
        return Job(job.id, job.seq, job.queue, claim.token)

    def published(self) -> Job:
        job = self.ready()
        claim = self.db.publish(queue=job.queue)
        return Job(job.id, job.seq, job.queue, claim.token)

    def running(self) -> Job:
        job = self.ready()
        claim, run = self.db.run(queue=job.queue)
        return Job(job.id, job.seq, job.queue, claim.token, run)

    def cancelled_running(self) -> Job:
        job = self.running()
        self.db.do("select bridge.cancel(%s)", job.id)
        return job

    def overtaken_running(self) -> Job:
        job = self.running()
        self.db.do("update bridge.inflight set stop_signal = 'TERM' where seq = %s", job.seq)
        return job

    def succeeded(self) -> Job:
        job = self.running()
        self.db.do("select bridge.finish(%s, %s, 'succeeded')", job.seq, job.run)
        return job

    def failed(self) -> Job:
        job = self.running()
        self.db.do("select bridge.fail(%s, %s, '{}', true)", job.seq, job.run)
        return job

    def cancelled(self) -> Job:
        job = self.published()
        self.db.do("select bridge.cancel(%s)", job.id)
        return job

    def expired(self) -> Job:
        job = self.published()
        self.db.do("update bridge.job set expires_at = clock_timestamp() where seq = %s", job.seq)
        self.db.tick()
        return job


SOON = "interval '1 min'"
STEADY = f"update bridge.tick_state set steady_since = '-infinity', ticked_at = clock_timestamp() + {SOON}"
TICK = f"select bridge.tick('test', p_now => clock_timestamp() + {SOON})"
REPORT = """select bridge.report_worker(%(worker)s, 'w', 1, 'prefork', 2, '{}', 'test', array_remove(array[%(token)s::uuid], null),
    clock_timestamp())"""
WORKER_GONE = [REPORT, STEADY, "update bridge.worker set seen_at = seen_at - interval '1 h'", TICK]
OFTEN_LOST = "update bridge.job set losses = 5 where seq = %(seq)s"
SLOWLY = "update bridge.job set backoff = '60' where seq = %(seq)s"
RETRY_RUN = (
    """select bridge.retry_run(%(seq)s, %(run)s, 'a.task', %(queue)s, 9::smallint, '[]', '{}', null, null, null, null, '{}', null, null"""
)
BY_TOKEN = "p_token => %(token)s"  # noqa: S105 - a delivery's
END = "select bridge.end_delivery(%(seq)s, %(token)s, %(worker)s, "
TAKEN = "update bridge.inflight set taken_by = '{old}' where seq = %(seq)s and state = 'published'"
LOSE = "select bridge.lose(%(seq)s, %(token)s, 'killed')"
END_PARENT = [
    "select bridge.retry(%(parent)s)",
    "select bridge.start(c.seq, c.token::uuid, %(worker)s, 1) from bridge.claim(%(drainer)s, 'parents', gen_random_uuid()) c",
    """select bridge.finish(i.seq, i.run, 'succeeded') from bridge.inflight i join bridge.job j using (seq) where j.id = %(parent)s""",
]  # fmt: skip
# By function, the ways in which it is called, each some statements; on a job in whatever place.
CALLS: dict[str, list[list[str]]] = {
    "claim": [["select count(*) from bridge.claim(%(drainer)s, %(queue)s, gen_random_uuid())"]],
    "mark_published": [
        ["select bridge.mark_published(shipment, array[seq]) from bridge.inflight where seq = %(seq)s and state = 'claimed'"]
    ],
    "unclaim": [["select bridge.unclaim(array[%(seq)s::bigint])"]],
    "republish": [
        [
            "update bridge.setting set value = '0' where name = 'republish_grace'",
            "update bridge.look set answered_at = clock_timestamp()",
            "update bridge.inflight set missing_since = clock_timestamp() - interval '1 h' where seq = %(seq)s",
            "select count(*) from bridge.republish(%(drainer)s, gen_random_uuid(), array[%(token)s::uuid])",
        ]
    ],
    "start": [["select bridge.start(%(seq)s, %(token)s, %(worker)s, 1)"]],
    "start_many": [["select bridge.start_many(array[%(seq)s::bigint], array[%(token)s::uuid], %(worker)s, 1, array[%(run)s::uuid])"]],
    "finish_many": [
        [
            """select bridge.finish_many(array[%(seq)s::bigint], array[%(run)s::uuid], array[%(token)s::uuid], array[%(id)s::uuid],
            array['1'], array[null::text])"""
        ]
    ],
    "unbundle": [["select bridge.unbundle(array[%(token)s::uuid], %(worker)s)"]],
    "complete": [["select bridge.complete(%(seq)s, %(run)s)"]],
    "complete_run": [[f"select bridge.complete_run(%(seq)s, %(run)s, '1', {BY_TOKEN})"]],
    "finish": [[f"select bridge.finish(%(seq)s, %(run)s, 'succeeded', {BY_TOKEN})"]],
    "fail": [
        [f"select bridge.fail(%(seq)s, %(run)s, '{{}}', {BY_TOKEN})"],
        [SLOWLY, f"select bridge.fail(%(seq)s, %(run)s, '{{}}', {BY_TOKEN})"],
        [f"select bridge.fail(%(seq)s, %(run)s, '{{}}', true, {BY_TOKEN})"],
    ],
    "retry_run": [
        [f"{RETRY_RUN}, null, {BY_TOKEN})"],
        [f"{RETRY_RUN}, clock_timestamp() + {SOON}, {BY_TOKEN})"],
        ["update bridge.job set deadline = clock_timestamp() where seq = %(seq)s", f"{RETRY_RUN}, null, {BY_TOKEN})"],
    ],
    "step_aside": [["select bridge.step_aside(%(seq)s, %(run)s, %(token)s)"]],
    "end_delivery": [
        [f"{END}'failed', '{{}}')"],
        [f"{END}'failed', '{{}}', false)"],
        [SLOWLY, f"{END}'failed', '{{}}', false)"],
        [f"{END}'cancelled', '{{}}')"],
        [f"{END}'expired', '{{}}')"],
    ],
    "lose": [[LOSE], [OFTEN_LOST, LOSE]],
    "release": [["select bridge.release(array[%(token)s::uuid])"]],
    "stop_worker": [[REPORT, "select bridge.stop_worker(%(worker)s)"]],
    "cancel": [["select bridge.cancel(%(id)s)"]],
    "pause": [["select bridge.pause(queue => %(queue)s, hard => true)"]],
    "retry": [["select bridge.retry(%(id)s)"]],
    "redrive": [["select bridge.redrive(%(id)s)"], ["select bridge.redrive(%(id)s, delay => '1 h')"]],
    "add_dependency": [["select bridge.add_dependency(%(id)s, bridge.enqueue('a.task', delay => '1 h'))"]],
    "move": [["select bridge.move(%(id)s, 'another')"]],
    "set_priority": [["select bridge.set_priority(%(id)s, 5)"]],
    "reschedule": [["select bridge.reschedule(%(id)s, delay => '0')"], ["select bridge.reschedule(%(id)s, delay => '1 h')"]],
    "settle_unreported": [
        [TAKEN, "select bridge.settle_unreported(true, queue => %(queue)s)"],
        [TAKEN, "select bridge.settle_unreported(false, queue => %(queue)s)"],
    ],
    "tick": [
        ["update bridge.scheduled set run_at = clock_timestamp() where seq = %(seq)s", TICK],
        ["update bridge.inflight set claimed_at = clock_timestamp() - interval '1 h' where seq = %(seq)s", TICK],
        ["update bridge.job set expires_at = clock_timestamp() where seq = %(seq)s", TICK],
        ["update bridge.job set deadline = clock_timestamp() where seq = %(seq)s", TICK],
        WORKER_GONE,
        [OFTEN_LOST, *WORKER_GONE],
    ],
    "parent": [
        END_PARENT,
        [f"update bridge.blocked set run_at = clock_timestamp() + {SOON}", *END_PARENT],
        ["select bridge.cancel(%(parent)s)"],
    ],
}


# What else of the granted functions reaches a place: it makes jobs, does the same to many, or is a part or another name of one above.
MAKES = {
    "check_alerts", "create_batch", "enqueue", "enqueue_buffered", "enqueue_flow", "enqueue_many", "enqueue_message", "enqueue_page",
    "never_ran", "run_schedule", "seal_batch", "test_alert", "try_callback", "watch_alerts",
}  # fmt: skip
MANY = {
    "cancel_batch", "cancel_jobs", "discard_jobs", "move_jobs", "purge", "redrive_jobs", "reschedule_jobs", "retry_failed", "revoke",
    "revoke_stamped", "set_priority_jobs",
}  # fmt: skip
PARTS = {"begin_call", "heed_revoke", "perform_call", "run_calls", "sweep", "tick_if_late"}
# These write to a row and leave it in its place, or drop ended ones whose time is over.
NOTES = {
    "discard",
    "forget",
    "log",
    "mark_missing",
    "note",
    "progress",
    "remove_breaker",
    "reset_breaker",
    "resume",
    "set_aside",
    "set_limit",
}


def movers(db: Session) -> set[str]:
    """Names of the granted functions that write to a place, or call what does."""
    sources = db.rows(
        """select p.proname, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), exists (
          select from aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee where r.rolname like 'bridge\\_%')
        from pg_proc p where p.pronamespace = 'bridge'::regnamespace"""
    )
    places = r"(?is)(insert\s+into|delete\s+from|update)\s+bridge\.(ready|scheduled|inflight|blocked|held|finished)\b"
    found = {name for name, source, _ in sources if re.search(places, source)}
    while more := {name for name, source, _ in sources if found & set(re.findall(r"bridge\.(\w+)\(", source))} - found:
        found |= more
    return found & {name for name, _, granted in sources if granted}


def call(db: Session, job: Job, statements: list[str]) -> None:
    """Call something; that it refuses a job in the wrong place is an answer as well."""
    given = {**asdict(job), "run": job.run or uuid.uuid4(), "worker": db.worker, "drainer": db.drainer}
    for statement in statements:
        try:
            with db.connection.transaction():
                db.connection.execute(statement.encode(), given)
        except psycopg.errors.DatabaseError as refused:
            if not str(refused.sqlstate).startswith("JB"):
                raise


def jobs_in_every_place(db: Session) -> Iterator[Job]:
    names = [name for name in vars(Makers) if not name.startswith("_")]
    for ran in (False, True):
        for name in names:
            yield getattr(Makers(db, ran=ran), name)()


def test_the_table_of_steps_is_what_the_functions_do(db: Session) -> None:
    """Each call is taken back, so that the next finds the job where it was."""
    steps = set()
    for job in jobs_in_every_place(db):
        before = place(db, job.id)
        for name, statements in [(name, way) for name, ways in CALLS.items() for way in ways]:
            with db.connection.transaction(force_rollback=True):
                call(db, job, statements)
                after = place(db, job.id)
            steps |= {(before, after, name)} if after != before else set()
    made = {step for step in documented() if step[0] != "nothing"}
    assert (sorted(steps - made), sorted(made - steps)) == ([], []), "steps that the page lacks, and steps that nothing takes"


def test_every_function_that_moves_jobs_is_tried(db: Session) -> None:
    assert movers(db) == (CALLS.keys() - {"parent"}) | MAKES | MANY | PARTS | NOTES


def test_a_new_job_is_where_the_table_says(db: Session) -> None:
    later = db.enqueue(delay="1 h")
    found = {place(db, identity) for identity in (later, db.enqueue(), db.enqueue(depends_on=[later]))}
    assert {("nothing", where, "enqueue") for where in found} == {step for step in documented() if step[0] == "nothing"}


def test_the_page_names_every_status_and_every_event(db: Session) -> None:
    outcomes = db.one("select pg_get_constraintdef(oid) from pg_constraint where conname = 'attempt_outcome_is_known' limit 1")
    for word in {*re.findall(r"'(\w+)'::text", outcomes), *FINAL, "blocked", "scheduled", "queued", "published", "running"}:
        assert f"`{word}`" in PAGE
