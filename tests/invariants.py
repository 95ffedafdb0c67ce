"""What must hold in every database at every moment, asked of the tables themselves."""

from __future__ import annotations

import psycopg

# Each query gives the rows that break the rule; none of them may give any.
RULES = {
    "a live job is in exactly one place": """
        select j.seq, count(p.place), array_agg(p.place) from bridge.job j
        left join (select seq, 'blocked' from bridge.blocked union all select seq, 'scheduled' from bridge.scheduled
          union all select seq, 'ready' from bridge.ready union all select seq, 'held' from bridge.held
          union all select seq, 'inflight' from bridge.inflight) p (seq, place)
          on p.seq = j.seq
        group by j.seq having count(p.place) <> 1""",
    "a place holds live jobs only": """
        select p.* from (select seq, 'blocked' from bridge.blocked union all select seq, 'scheduled' from bridge.scheduled
          union all select seq, 'ready' from bridge.ready union all select seq, 'held' from bridge.held
          union all select seq, 'inflight' from bridge.inflight) p (seq, place)
        where not exists (select from bridge.job j where j.seq = p.seq)""",
    "a job is live or finished, never both": "select j.id from bridge.job j join bridge.finished f using (id)",
    "a job finishes once": "select id, count(*) from bridge.finished group by id having count(*) > 1",
    "a reader sees one row of each job": "select id, count(*) from bridge.jobs group by id having count(*) > 1",
    "a ready job waits where its content says": """
        select r.seq from bridge.ready r join bridge.job j using (seq)
        where (r.queue, r.rank, r.size) is distinct from (j.queue, j.rank, j.size)""",
    "a held job waits in a lane of its own queue and rank": """
        select h.seq from bridge.held h join bridge.job j using (seq) left join bridge.lane l on l.id = h.lane
        where (l.queue, l.rank, h.size) is distinct from (j.queue, j.rank, j.size)""",
    "a permit in use belongs to a job in flight, a turn to a live job": """
        select p.* from bridge.permit p join bridge.bucket b on b.id = p.bucket where not p.freed and case when b.job_limit = 0
          then not exists (select from bridge.job j where j.seq = p.seq)
          else not exists (select from bridge.inflight i where i.seq = p.seq and p.bucket = any (i.permits)) end""",
    "a bucket knows how many permits there are": """
        select b.id, b.used from bridge.bucket b join bridge.job_limit l on l.id = b.job_limit and l.concurrency is not null
        where b.used <> (select count(*) from bridge.permit p where p.bucket = b.id)""",
    "one job at a time has the turn of a serial key": """
        select b.key, count(*) from bridge.bucket b join bridge.permit p on p.bucket = b.id
        where b.job_limit = 0 and not p.freed group by b.key having count(*) > 1""",
    "a job in flight is counted for its own queue": """
        select i.seq from bridge.inflight i join bridge.job j using (seq) where i.queue <> j.queue""",
    "a unique key belongs to the live job that has it, or is kept for a time": """
        select k.key, k.seq from bridge.unique_key k left join bridge.job j on j.seq = k.seq
        where j.unique_key is distinct from k.key and (j.seq is not null or k.kept_until is null)""",
    "a live job has its unique key, until its start or its time where it asked for that": """
        select j.seq, j.unique_key from bridge.job j left join bridge.inflight i using (seq)
        where j.unique_key is not null and j.options->'unique_for' is null
          and (j.options->'unique_until' is null or (j.attempts = 0 and j.losses = 0 and i.state is distinct from 'running'))
          and not exists (select from bridge.unique_key k where k.key = j.unique_key and k.seq = j.seq and k.id = j.id)
          and not exists (select from bridge.attempt a where a.id = j.id)""",
    "a live job that waits for a parent is blocked": """
        select d.* from bridge.dependency d join bridge.job j on j.seq = d.child
        where not exists (select from bridge.blocked b where b.seq = d.child)""",
    "a parent is live, or has just ended": """
        select d.* from bridge.dependency d where not exists (select from bridge.job j where j.seq = d.parent)
          and not exists (select from bridge.finished f where f.seq = d.parent)""",
    "a run is in one place": """
        select r.run, count(*) from (select run from bridge.inflight where run is not null
          union all select run from bridge.finished where run is not null
          union all select run from bridge.attempt where run is not null and outcome <> 'superseded') r (run)
        group by r.run having count(*) > 1""",
    "no job has ended more attempts than it may, those aside that asked for their next one": """
        select j.id from bridge.jobs j where j.attempts > j.max_attempts + j.losses
          + (select count(*) from bridge.attempt a where a.id = j.id and a.outcome = 'retried')""",
}


def assert_sound(dsn: str) -> None:
    """Fail with the rule that is broken and the rows that break it."""
    with psycopg.connect(dsn) as connection:
        connection.execute("set transaction isolation level repeatable read")
        for rule, query in RULES.items():
            rows = connection.execute(query.encode()).fetchmany(5)
            assert rows == [], f"{rule}: {rows}"
