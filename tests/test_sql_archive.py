"""What a cleanup does to tables of others: an archive of ended jobs, and pg_cron's log."""

from __future__ import annotations

from fix_retention import cleaned, end_long_ago, ids
from fix_sql import Session

DAY = "select to_char((now() - %s::interval) at time zone 'utc', 'YYYYMMDD')"


def test_ended_jobs_are_archived_in_the_transaction_in_which_they_go(db: Session) -> None:
    db.do("create schema history")
    assert db.one("select bridge.set_archive(bridge.create_archive('history.jobs'))") == "set"
    db.do("select bridge.set_retention(status => 'succeeded', keep => '1 day')")
    early, old, dead = end_long_ago(db, "3 days", args=[1]), end_long_ago(db, "40 days"), end_long_ago(db, "40 days", "failed")
    assert db.one("select bridge.create_archive('history.jobs')::text") == "history.jobs", "saying it again changes nothing"
    done = cleaned(db)
    assert sum(archived for *_, archived in done.values()) == 2
    assert dict(db.rows("select id, args from history.jobs")) == {early: [1], old: []}
    assert ids(db) == {dead}
    assert db.one("select archived_at > now() - interval '1 minute' from history.jobs limit 1") is True
    cleaned(db, "91 days")
    assert ids(db) == set()
    assert {row[0] for row in db.rows("select id from history.jobs")} == {early, old, dead}


def test_an_operator_makes_an_archive_and_sets_it_once_it_is_the_owners(db: Session) -> None:
    db.do("create schema history")
    db.do("grant create, usage on schema history to bridge_operator")
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        db.do("select bridge.create_archive('history.jobs')")
    db.do("alter table history.jobs owner to current_user")
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        assert db.one("select bridge.set_archive('history.jobs')") == "set"
    gone = end_long_ago(db, "40 days")
    with db.connection.transaction():
        db.do("set local role bridge_operator")
        db.do("select * from bridge.cleanup()")
    assert (ids(db, "finished"), db.one("select id from history.jobs")) == (set(), gone)
    db.do("drop owned by bridge_operator")
    db.do("select bridge.grant_all()")


def test_nothing_goes_while_the_archive_cannot_take_it(db: Session) -> None:
    db.do("create schema history")
    db.do("select bridge.set_archive(bridge.create_archive('history.jobs'))")
    db.do("select bridge.set_retention(status => 'succeeded', keep => '1 day')")
    jobs = {end_long_ago(db, "3 days"), end_long_ago(db, "40 days")}
    db.do("alter table history.jobs drop column result")
    done = cleaned(db)
    assert {name: status for name, (status, *_) in done.items() if status == "failed"}.keys() >= {f"finished_{db.one(DAY, '40 days')}"}
    assert ids(db) == jobs
    assert db.one("select status from bridge.cleanups where operation = 'cleanup' order by id desc limit 1") == "failed"
    advice = db.rows("select severity, found from bridge.upkeep() where kind = 'cleanup'")
    assert any("result" in found for _, found in advice)
    db.do("select bridge.create_archive('history.jobs')")
    cleaned(db)
    assert ids(db) == set()


def test_of_pg_crons_log_that_of_our_entries_goes_unless_all_is_asked_for(cron_dsn: str) -> None:
    db = Session(cron_dsn)
    db.do("select cron.schedule('theirs', '0 0 1 1 *', 'select 1')")
    db.do(
        """insert into cron.job_run_details (jobid, runid, database, username, command, status, start_time, end_time)
        select j.jobid, 1000000 + 10 * j.jobid + n, j.database, j.username, j.command, 'succeeded', t, case when n < 2 then t end
        from cron.job j, generate_series(0, 2) n, lateral (select now() - n * interval '8 days') a (t)"""
    )
    count = "select count(*) filter (where j.jobname = 'theirs'), count(*) filter (where j.jobname <> 'theirs')"
    count += " from cron.job_run_details d join cron.job j using (jobid) where d.runid >= 1000000"
    assert db.rows(count) == [(3, 6)]
    done = cleaned(db)
    assert db.rows(count) == [(3, 2)]
    assert done["cron.job_run_details"][:2] == ("done", 4)
    db.do("update bridge.setting set value = '1' where name = 'cron_clean_all'")
    cleaned(db)
    assert db.rows(count) == [(1, 2)]


def test_without_the_right_to_pg_crons_log_it_is_said_what_to_grant_and_the_rest_goes_on(cron_dsn: str) -> None:
    db = Session(cron_dsn)
    db.do("do $$ begin create role bridge_test_nobody nologin; exception when duplicate_object then null; end $$")
    with db.connection.transaction(force_rollback=True):
        db.do("grant usage on schema bridge to bridge_test_nobody")
        db.do("grant execute on all functions in schema bridge to bridge_test_nobody")
        db.do("grant select on bridge.setting to bridge_test_nobody")
        db.do("set local role bridge_test_nobody")
        assert db.rows("select detail from bridge.plan_cron(now())") == [("this needs: grant usage on schema cron to bridge_test_nobody",)]
    db.do("create function bridge.test_refuse() returns trigger language plpgsql as 'begin raise insufficient_privilege; end'")
    db.do("create trigger test_refuse before delete on cron.job_run_details for each statement execute function bridge.test_refuse()")
    end_long_ago(db, "40 days")
    done = cleaned(db)
    db.do("drop function bridge.test_refuse cascade")
    assert done["cron.job_run_details"][0] == "failed"
    assert ids(db) == set()
