"""Small worlds for two sessions to race in: one job in a chosen state, with all that hangs on it, under names of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import uuid
from typing import Any

from fix_sql import Session

# What every world has: a job with a unique key, in a sealed batch with another that has ended, with a child that waits for it; a worker
# that holds it, a drainer. How far the job has come is the stage.
STAGES = {
    "blocked": [],
    "scheduled": [],
    "due": ["make due"],
    "ready": [],
    "held": ["claim"],  # behind the second, which has the turn of their serial key
    "limited": ["limit", "claim"],  # the same, by a limit of one
    "rated": ["rate", "claim"],  # the same, by a rate of one an hour
    "shared": ["share", "claim one"],  # in the lane of its tenant, next in turn to the second, which is another's
    "overdue": ["expire"],
    "claimed": ["claim"],
    "abandoned": ["claim", "leave"],  # by a drainer that died before it could mark it
    "published": ["claim", "mark"],
    "told": ["claim", "mark", "listen"],  # to a drainer that listens
    "stranded": ["claim", "mark", "die"],  # in the hand of a worker that died before it could start it
    "missing": ["claim", "mark", "miss"],
    "taken": ["claim", "mark", "miss", "take"],
    "running": ["claim", "mark", "start"],
    "orphaned": ["claim", "mark", "start", "die"],
    "doomed": ["claim", "mark", "start", "lose often", "die"],  # an orphan that has lost as many workers as it may
    "replaced": ["claim", "mark", "start", "replace"],
    "stopping": ["claim", "mark", "start", "stop"],
    "failed": ["claim", "mark", "start", "fail"],
    "succeeded": ["claim", "mark", "start", "finish"],
    "cancelled": ["cancel"],
    "part": ["chord", "claim", "mark", "start"],
    "planned": ["claim", "mark", "start", "plan"],
    "guarded": ["claim", "mark", "start", "guard"],
    # The job, more urgent, and the second, made before it, stand in one queue: all orders but that of their making are the other way round.
    "several": [],
    "several-claimed": ["claim"],
    "several-published": ["claim", "mark"],
    "several-missing": ["claim", "mark", "miss"],
    "several-running": ["claim", "mark", "start both"],  # one slice of a bundle
    "several-orphaned": ["claim", "mark", "start both", "die"],
    "several-stopping": ["claim", "mark", "start both", "stop"],
}
# A world's job, and what it has in flight, where no number is known yet.
SEQ = "(select o.seq from bridge.job o where o.id = %(job)s)"
TOKEN = f"(select i.token from bridge.inflight i where i.seq = {SEQ})"
RUN = f"(select i.run from bridge.inflight i where i.seq = {SEQ})"
ERROR = '{"type": "ValueError"}'
STEPS = {
    "claim": "select bridge.claim(%(drainer)s, %(queue)s, %(shipment)s)",
    "mark": "select bridge.mark_published(%(shipment)s, array(select o.seq from bridge.inflight o where o.shipment = %(shipment)s)),"
    " bridge.report_worker(%(worker)s, %(name)s, 1, 'prefork', 2, array[%(queue)s], 'test',"
    " array(select o.token from bridge.inflight o where o.shipment = %(shipment)s), clock_timestamp())",
    "listen": "select bridge.report_drainer(%(drainer)s, 'd', 1, 'test', 1, clock_timestamp(), p_listens => array[%(queue)s, ''])",
    "leave": "update bridge.inflight set claimed_at = clock_timestamp() - interval '1 hour' where shipment = %(shipment)s",
    "lose often": f"update bridge.job set losses = bridge.setting('max_losses') where seq = {SEQ}",
    "miss": "update bridge.inflight set missing_since = clock_timestamp() - interval '1 hour',"
    " published_at = clock_timestamp() - interval '2 hours' where shipment = %(shipment)s",
    "take": f"update bridge.inflight set taken_by = '{{w@silent}}' where seq = {SEQ}",
    "start": f"select bridge.start({SEQ}, {TOKEN}, %(worker)s, 1)",
    "start both": "select bridge.start_many(array_agg(i.seq order by i.seq), array_agg(i.token order by i.seq), %(worker)s, 1,"
    " array_agg(gen_random_uuid())) from bridge.inflight i where i.shipment = %(shipment)s",
    "die": "with dead as (update bridge.worker set lost_at = clock_timestamp() where id = %(worker)s returning id)"
    " update bridge.inflight i set started_at = i.started_at - interval '1 hour' from dead where i.worker = dead.id",
    "live": "update bridge.worker set seen_at = clock_timestamp() + interval '1 hour' where id = %(worker)s",
    "replace": f"insert into bridge.replaced (seq, since) values ({SEQ}, clock_timestamp())",
    "stop": "select bridge.cancel(%(job)s)",
    "fail": f"select bridge.fail({SEQ}, {RUN}, '{ERROR}', true)",
    "finish": f"select bridge.finish({SEQ}, {RUN}, 'succeeded', '1')",
    "cancel": "select bridge.cancel(%(job)s)",
    "limit": "select bridge.set_limit(%(limit)s, queue => %(queue)s, concurrency => 1)",
    "rate": "select bridge.set_limit(%(limit)s, queue => %(queue)s, rate => 1, per => '1 hour', burst => 1)",
    "share": "select bridge.set_limit(%(limit)s, queue => %(queue)s, key => 'kwargs.tenant', fair => true)",
    "claim one": "select bridge.claim(%(drainer)s, %(queue)s, %(shipment)s, 1)",
    "chord": "with c as (select bridge.begin_chord(%(chord)s, '{}', '[]', %(elsewhere)s, null), bridge.size_chord(%(chord)s, 1))"
    " update bridge.job set chord = %(chord)s, headers = '{\"group_index\": 0}' from c where id = %(job)s",
    "plan": "with s as (select bridge.schedule(%(schedule)s, '@hourly', 'a.task', queue => %(elsewhere)s, overlap => 'queue_one')), r as ("
    "insert into bridge.schedule_run (schedule, slot, trigger_type, status, job, created_at)"
    " select %(schedule)s, now() - interval '1 hour', 'scheduled', 'open', %(job)s, now() from s returning id)"
    " select count(*) from r",
    "guard": "with b as (select bridge.set_breaker(%(queue)s, minimum => 1, ratio => 0.1))"
    " select bridge.turn_breaker('queue', %(queue)s, 'half_open', 'try') from b",
    "batch": "insert into bridge.batch (id, callback, args, kwargs, queue, callback_on, created_at)"
    " values (%(batch)s, 'a.callback', '[]', '{}', %(elsewhere)s, 'success', clock_timestamp())",
    "jobs": "select bridge.enqueue_buffered(%(jobs)s)",
    "seal": "select bridge.seal_batch(%(batch)s)",
    "complete the second": "select bridge.complete(id => %(second)s)",
    "fail the second": f"select bridge.fail((c).seq, bridge.start((c).seq, (c).token::uuid, %(other_worker)s, 1), '{ERROR}', true)"
    " from (select bridge.claim(%(drainer)s, %(aside)s, %(flow)s) as c) o",
    "make due": f"with gone as (delete from bridge.ready where seq = {SEQ} returning seq)"
    " insert into bridge.scheduled select seq, now() - interval '1 second' from gone",
    "expire": "update bridge.job set expires_at = now() - interval '1 second' where id = %(job)s",
}
# How the second of a batch has ended, by the stage: completed in all others.
SECOND: dict[str, list[str]] = {"failed": ["fail the second"], "several": [], "held": [], "limited": [], "rated": [], "shared": []}
NUMBERS = """
    select j.seq, coalesce(i.token, gen_random_uuid()), coalesce(i.run, gen_random_uuid()),
      (select o.seq from bridge.job o where o.id = %(second)s),
      (select coalesce(i.token, gen_random_uuid()) from bridge.job o left join bridge.inflight i using (seq) where o.id = %(second)s),
      (select coalesce(i.run, gen_random_uuid()) from bridge.job o left join bridge.inflight i using (seq) where o.id = %(second)s)
    from (select seq, id from bridge.job union all select seq, id from bridge.finished) j left join bridge.inflight i on i.seq = j.seq
    where j.id = %(job)s"""
NUMBERED = ("seq", "token", "run", "second_seq", "second_token", "second_run")
IDS = [
    "parent", "second", "job", "child", "batch", "worker", "drainer", "shipment", "second_shipment", "absent", "other_worker", "new",
    "newer", "flow",
]  # fmt: skip
NAMES = ("queue", "elsewhere", "aside", "key", "second_key", "limit", "schedule", "chord", "name", "rule", "task")
# All that a transaction could have done to a world, without what differs from time to time: moments, random ids, numbers of rows.
SEEN = """
    with job as (
      select j.id, j.seq, v.status, i.state, j.rank, j.queue, j.attempts, j.losses, j.max_attempts, j.error->>'type' as error, j.unique_key,
        sign(extract(epoch from j.run_at - now()))::integer as later, i.stop_signal, i.cancelled_at is not null as cancelled, i.progress,
        (select sign(extract(epoch from b.run_at - now()))::integer from bridge.blocked b where b.seq = j.seq) as free_later,
        i.taken_by, i.republished, i.missing_since is not null as missing, i.together, j.alone,
        null::text as result, null::boolean as discarded
      from bridge.job j join bridge.live_jobs v on v.id = j.id left join bridge.inflight i on i.seq = j.seq
      where j.queue = any (array[%(queue)s, %(elsewhere)s, %(aside)s])
      union all
      select f.id, f.seq, f.status, null, f.rank, f.queue, f.attempts, f.losses, f.max_attempts, f.error->>'type', f.unique_key, null, null,
        null, f.progress, null, null, null, null, null, null, f.result::text, f.discarded_at is not null
      from bridge.finished f where f.queue = any (array[%(queue)s, %(elsewhere)s, %(aside)s])
    )
    select jsonb_build_object(
      'job', (select jsonb_agg(to_jsonb(o) - 'id' - 'seq') from job o where o.id = %(job)s),
      'second', (select jsonb_agg(jsonb_build_array(o.status, o.attempts, o.losses, o.together, o.alone)) from job o
        where o.id = %(second)s),
      'child', (select jsonb_agg(o.status) from job o where o.id = %(child)s),
      'parent', (select jsonb_agg(o.status) from job o where o.id = %(parent)s),
      'waits', (select count(*) from bridge.dependency d join bridge.job c on c.seq = d.child
        where c.id in (%(child)s, %(job)s, %(second)s)),
      'others', (select jsonb_agg(jsonb_build_array(o.status, o.queue, o.unique_key) order by o.status, o.queue, o.unique_key) from job o
        where o.id not in (%(job)s, %(second)s, %(child)s, %(parent)s)),
      'key', (select jsonb_agg(jsonb_build_array(u.id = %(job)s, u.until_start, u.kept_until is null)) from bridge.unique_key u
        where u.key = %(key)s),
      'attempts', (select jsonb_agg(jsonb_build_array(a.attempt, a.outcome) order by a.attempt, a.outcome) from bridge.attempt a
        where a.id = %(job)s),
      'notes', (select jsonb_agg(distinct n.action) from bridge.job_note n where n.id = %(job)s),
      'batch', (select bridge.batch_status(b) || (b.called_at is not null)::text from bridge.batch b where b.id = %(batch)s),
      'replaced', (select count(*) from bridge.replaced r where r.seq = %(seq)s),
      'revoked', (select count(*) from bridge.revoked r where r.id = %(job)s),
      'stored', (select jsonb_agg(r.state) from bridge.result r where r.id = %(job)s),
      'untold', (select count(*) from bridge.untold u where u.id = %(job)s),
      'waiters', (select count(*) from bridge.waiter w where w.id = %(job)s),
      'lines', (select count(*) from bridge.log_line l where l.id = %(job)s),
      'saved', (select jsonb_agg(c.data) from bridge.checkpoint c where c.id = %(job)s),
      'permits', (select count(*) from bridge.permit p join bridge.bucket b on b.id = p.bucket join bridge.job_limit l on l.id = b.job_limit
        where p.seq = %(seq)s and not p.freed and l.name = %(limit)s),
      'rates', (select jsonb_agg(round(b.tokens) order by b.key) from bridge.bucket b join bridge.job_limit l on l.id = b.job_limit
        where b.tokens is not null and l.name = %(limit)s),
      'turns', (select jsonb_agg(o.status order by o.status) from job o join bridge.permit p on p.seq = o.seq and not p.freed
        join bridge.bucket b on b.id = p.bucket and b.job_limit = 0),
      'limits', (select jsonb_agg(jsonb_build_array(l.concurrency, l.rate, l.fair)) from bridge.job_limit l where l.name = %(limit)s),
      'paused', (select jsonb_agg(p.hard) from bridge.paused p where p.name = %(queue)s),
      'window', (select jsonb_agg(q."window") from bridge.queue q where q.name = %(queue)s),
      'breaker', (select jsonb_agg(b.state) from bridge.breaker b where b.name = %(queue)s),
      'schedule', (select jsonb_agg(jsonb_build_array(s.cron, s.enabled)) from bridge.schedule s where s.name = %(schedule)s),
      'runs', (select jsonb_agg(jsonb_build_array(r.trigger_type, r.status) order by r.trigger_type, r.status) from bridge.schedule_run r
        where r.schedule = %(schedule)s),
      'chord', (select jsonb_agg(jsonb_build_array(c.size, c.added)) from bridge.chord c where c.id = %(chord)s),
      'parts', (select count(*) from bridge.chord_part p where p.chord = %(chord)s),
      'worker', (select jsonb_build_array(cardinality(w.holding), w.stopped_at is not null, w.lost_at is not null) from bridge.worker w
        where w.id = %(worker)s))"""


@dataclasses.dataclass(frozen=True)
class World:
    """One job and what hangs on it; `named` is what the statements of the table of races fill in."""

    stage: str
    named: dict[str, Any]


class Maker:
    """Makes worlds in one database, one after the other, and says what became of them."""

    def __init__(self, dsn: str) -> None:
        self.db = Session(dsn)
        self._numbers = itertools.count(1)
        self.db.do("update bridge.look set answered_at = clock_timestamp()")
        self.db.do("update bridge.tick_state set ticked_at = clock_timestamp(), upkeep_at = clock_timestamp()")
        self.db.do("update bridge.tick_state set steady_since = now() - interval '1 day'")
        # No worker is dead until the server has run for as long: else the sweep would begin to find the dead ones at some moment of a test.
        self.db.do(
            "update bridge.setting set value = to_jsonb(least(value::numeric, extract(epoch from now() - pg_postmaster_start_time()) / 2))"
            " where name = 'worker_lost'"
        )

    def make(self, stage: str) -> World:
        """A new world whose job has come as far as `stage`."""
        number = next(self._numbers)
        named: dict[str, Any] = {name: uuid.uuid4() for name in IDS} | {name: f"{name}-{number}" for name in NAMES}
        jobs = [{"id": str(named[name]), "job": job} for name, job in jobs_of(named, stage).items()]
        with self.db.connection.pipeline():
            self.db.do("begin")
            for step in ("batch", "jobs", "seal", *SECOND.get(stage.partition("-")[0], ["complete the second"]), *STAGES[stage], "live"):
                self.db.connection.execute(STEPS[step].encode(), named | {"jobs": json.dumps(jobs)})
            row = self.db.connection.execute(NUMBERS.encode(), named)
            self.db.do("commit")
        named |= dict(zip(NUMBERED, row.fetchone() or (), strict=True))
        return World(stage, named)

    def clear(self) -> None:
        """Take all worlds away that were made, so that what looks at all jobs meets the next one alone."""
        self.db.do("truncate bridge.job, bridge.finished, bridge.unique_key, bridge.dependency, bridge.batch, bridge.worker")
        self.db.do("select bridge.remove_limit(l.name) from bridge.job_limit l")
        self.db.do("truncate bridge.held, bridge.lane, bridge.permit, bridge.bucket")
        self.db.do(
            "truncate bridge.replaced, bridge.blocked, bridge.scheduled, bridge.ready, bridge.inflight, bridge.second_look, bridge.attempt"
        )

    def look(self, world: World) -> dict[str, Any]:
        """What became of a world, after what its ends have left to the sweep, and new limits to the tick."""
        self.db.do("select bridge.settle_late(1000), bridge.count_recent(clock_timestamp())")
        row = self.db.connection.execute(SEEN.encode(), world.named).fetchone()
        assert row is not None
        return {part: value for part, value in row[0].items() if value is not None}


def jobs_of(named: dict[str, Any], stage: str) -> dict[str, dict[str, Any]]:
    """The jobs of a world, none of which has begun."""
    own: dict[str, Any] = {"task": named["task"], "queue": named["queue"], "unique_key": named["key"], "batch": str(named["batch"])}
    own |= {"max_attempts": 2, "backoff": 3600}
    if stage == "scheduled":
        own["delay"] = "1 hour"
    elif stage == "blocked":
        own["depends_on"] = [str(named["parent"])]
    elif stage in ("claimed", "abandoned", "published", "stranded", "missing"):
        own["unique_until"] = "started"
    second = {"task": named["task"], "queue": named["aside"], "unique_key": named["second_key"], "batch": str(named["batch"])}
    if stage.startswith("several"):
        own["priority"] = 9
    if SECOND.get(stage.partition("-")[0]) == []:
        second["queue"] = named["queue"]
    if stage == "held":
        own["serial_key"] = second["serial_key"] = named["key"]
    elif stage == "shared":
        own["kwargs"], second["kwargs"] = {"tenant": "b"}, {"tenant": "a"}
    child = {"task": "a.child", "queue": named["elsewhere"], "depends_on": [str(named["job"])], "on_parent_failure": "wait"}
    return {"parent": {"task": "a.parent", "queue": named["elsewhere"]}, "second": second, "job": own, "child": child}
