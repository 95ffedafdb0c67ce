"""Cleaning up: what goes, what stays, in small steps, beside everybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_background import Background
from fix_retention import cleaned, end_long_ago, ids, partitions, run_until
from fix_servers import ROOT, wait_until
from fix_sql import Session
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = "select to_char((now() - %s::interval) at time zone 'utc', 'YYYYMMDD')"


def keep(db: Session, queue: str | None, status: str | None, interval: str | None) -> str:
    return str(db.one("select bridge.set_retention(%s, %s, %s::interval)", queue, status, interval))


def test_the_most_special_rule_counts_and_dead_letters_go_by_rules_that_name_them(db: Session) -> None:
    keep(db, "a", None, "2 days")
    keep(db, "a", "cancelled", None)
    keep(db, None, "succeeded", "5 days")
    keep(db, "b", "failed", "1 day")
    stay = {
        end_long_ago(db, "1 day", queue="a"), end_long_ago(db, "3 days", queue="b"), end_long_ago(db, "3 days", "cancelled", queue="a"),
        end_long_ago(db, "6 days", "failed", queue="a"),
    }  # fmt: skip
    go = {
        end_long_ago(db, "3 days", queue="a"), end_long_ago(db, "6 days", queue="b"), end_long_ago(db, "3 days", "expired", queue="a"),
        end_long_ago(db, "2 days", "failed", queue="b"),
    }  # fmt: skip
    assert sum(found for _, found, _, _ in cleaned(db, dry_run=True).values()) == len(go)
    assert ids(db) == stay | go
    cleaned(db)
    assert ids(db) == stay


def test_what_goes_before_its_day_takes_its_attempts_and_logs_along(db: Session) -> None:
    keep(db, None, "succeeded", "1 day")
    identity = end_long_ago(db, "3 days")
    other = end_long_ago(db, "3 days", "cancelled")
    for job in (identity, other):
        at = "(select finished_at - interval '1 minute' from bridge.finished where id = %s)"
        db.do(f"insert into bridge.attempt (id, seq, attempt, ended_at, outcome) values (%s, 1, 1, {at}, 'retried')", job, job)
        columns = "id, run, attempt, number, pos, at, level, message"
        db.do(f"insert into bridge.log_line ({columns}) values (%s, gen_random_uuid(), 1, 1, 1, {at}, 'info', 'x')", job, job)
    cleaned(db)
    assert ids(db) == ids(db, "attempt") == ids(db, "log_line") == {other}


def test_parts_of_a_chord_or_batch_that_is_not_over_stay_and_a_rule_that_is_gone_holds_no_more(db: Session) -> None:
    keep(db, None, "succeeded", "1 day")
    batch = db.one("select bridge.create_batch()")
    member, part = end_long_ago(db, "3 days"), end_long_ago(db, "3 days")
    db.do("update bridge.finished set batch = %s where id = %s", batch, member)
    db.do("update bridge.finished set chord = 'c' where id = %s", part)
    db.do("select bridge.begin_chord('c', '{}', null, 'celery', null)")
    cleaned(db)
    assert ids(db) == {member, part}
    db.do("delete from bridge.chord")
    db.do("select bridge.seal_batch(%s)", batch)
    assert db.one("select bridge.remove_retention(status => 'succeeded')") is True
    cleaned(db)
    assert ids(db) == {member, part}
    keep(db, None, "succeeded", "1 day")
    cleaned(db)
    assert ids(db) == set()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_retention()", "neither queue nor status is given"),
        ("set_retention(queue => '', keep => '1 day')", "queue is empty"),
        ("set_retention(status => 'queued', keep => '1 day')", "status is 'queued'"),
        ("set_retention(queue => 'a', keep => '-1 day')", "keep is -1 days"),
        ("remove_retention(status => 'dead')", "status is 'dead'"),
        ("set_archive('bridge.job')", "give a table outside of schema bridge"),
        ("set_archive('pg_catalog.pg_class')", "lacks seq bigint"),
        ("create_archive('jobs')", "name is 'jobs'"),
    ],
)
def test_a_rule_or_archive_that_can_never_work_is_refused(db: Session, call: str, words: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match=words) as refused:
        db.do(f"select bridge.{call}")
    assert refused.value.sqlstate == "JB001"
    assert refused.value.diag.message_hint


def test_rows_go_in_batches_each_of_which_may_be_the_last_for_a_while(db: Session) -> None:
    keep(db, None, "succeeded", "1 day")
    for _ in range(7):
        end_long_ago(db, "3 days")
    number = db.one("select bridge.begin_cleanup('test')")
    left = []
    for _ in range(4):
        assert db.one("select bridge.cleanup_step(2)") is True
        left.append(len(ids(db)))
    assert left == [5, 3, 1, 0]
    assert db.one("select bridge.begin_cleanup('another')") == number, "it is gone on with"
    db.do("update bridge.cleanup_log set touched_at = now() - interval '11 minutes' where status = 'running'")
    again = db.one("select bridge.begin_cleanup('another')")
    assert again > number
    states = "select distinct status from bridge.cleanups where cleanup = %s or id = %s order by 1"
    assert db.rows(states, number, number) == [("done",), ("interrupted",)]
    db.do("call bridge.cleanup_loop()")
    assert db.rows("select status, deleted from bridge.cleanups where id = %s", again) == [("done", 0)]
    assert db.one("select bridge.cleanup_step()") is False


def test_of_two_cleanups_at_once_the_second_leaves_it_to_the_first(db: Session, dsn: str) -> None:
    other = Session(dsn)
    with db.connection.transaction():
        db.do("select bridge.begin_cleanup('first')")
        assert other.one("select bridge.begin_cleanup('second')") is None
        assert other.one("select bridge.cleanup_step()") is None
        other.do("call bridge.cleanup_loop()")
    assert db.rows("select by from bridge.cleanups where status = 'running' and operation = 'cleanup'") == [("first",)]


def test_changes_of_a_day_that_is_being_put_aside_are_not_lost(db: Session) -> None:
    untouched, redriven, discarded, forgotten, kept = (end_long_ago(db, "40 days", "failed") for _ in range(5))
    end_long_ago(db, "40 days")
    run_until(db, "swap")
    assert ids(db, "dead_jobs") == {untouched, redriven, discarded, forgotten, kept}, "all are there meanwhile"
    db.do("select bridge.redrive(%s)", redriven)
    db.do("select bridge.discard(%s)", discarded)
    db.do("select bridge.forget(%s)", forgotten)
    cleaned(db)
    assert ids(db) == {untouched, forgotten, kept}
    assert db.one("select outcome from bridge.finished where id = %s", forgotten) == {"forgotten": True}
    assert db.status(redriven) == "queued"
    assert db.one("select count(*) from bridge.kept_change") == 0
    triggers = "select count(*) from pg_trigger where tgname = 'bridge_kept_change'"
    assert db.one(triggers) == 0


def test_a_cleanup_that_broke_off_while_it_put_a_day_aside_leaves_nothing_in_the_way(db: Session) -> None:
    dead = {end_long_ago(db, "40 days", "failed") for _ in range(3)}
    run_until(db, "copy")
    assert ids(db, "dead_jobs") == dead
    db.do("update bridge.cleanup_log set touched_at = now() - interval '11 minutes'")
    cleaned(db)
    assert ids(db, "dead_jobs") == dead
    tables = "select count(*) from pg_class where relnamespace = 'bridge'::regnamespace and relkind = 'r' and relname ~ 'finished_kept'"
    assert db.one(tables) == 1


def test_what_an_earlier_release_has_put_aside_is_taken_over(db: Session) -> None:
    old = end_long_ago(db, "50 days", "failed")
    day = f"finished_{db.one(DAY, '50 days')}"
    upper = db.one("select upper from bridge.days_of('finished') where name = %s", day)
    db.do(f"alter table bridge.finished detach partition bridge.{day}")
    db.do(f"alter table bridge.{day} rename to finished_kept")
    db.do(f"alter table bridge.finished attach partition bridge.finished_kept for values from (minvalue) to ('{upper}')")
    new = end_long_ago(db, "40 days", "failed")
    cleaned(db)
    assert ids(db, "dead_jobs") == {old, new}
    assert [name for name in partitions(db) if "_kept" in name] == [f"finished_kept_{db.one(DAY, '40 days')}"]


def test_the_exchange_reads_no_row_so_its_lock_does_not_last_longer_where_more_is_kept(db: Session) -> None:
    end_long_ago(db, "40 days", "failed")
    run_until(db, "swap")
    said: list[str] = []
    db.connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    db.do("set client_min_messages = debug1")
    db.do("select bridge.cleanup_step()")
    db.do("reset client_min_messages")
    name = f"finished_kept_{db.one(DAY, '40 days')}"
    assert f'partition constraint for table "{name}" is implied by existing constraints' in said


class Writer(Background):
    """Lives of jobs, one after the other; a wait for a lock of more than three times the promised half second is an error."""

    def __init__(self, dsn: str) -> None:
        self.db = Session(dsn)
        self.db.do("set lock_timeout = '1500ms'")
        self.lives = 0
        super().__init__()

    def step(self) -> None:
        self.db.enqueue(queue="live")
        self.db.finish(*self.db.run(queue="live"))
        self.lives += 1


@pytest.fixture
def writer(dsn: str) -> Iterator[Writer]:
    writer = Writer(dsn)
    yield writer
    writer.stop()


def test_whoever_ends_jobs_goes_on_while_days_are_dropped_and_is_held_off_but_a_moment(db: Session, dsn: str, writer: Writer) -> None:
    keep(db, "celery", "cancelled", "1 day")
    dead = {end_long_ago(db, age, "failed") for age in ("40 days", "41 days", "42 days")}
    end_long_ago(db, "3 days", "cancelled")
    reader = Session(dsn)
    with reader.connection.transaction():
        reader.rows("select count(*) from bridge.jobs")
        before = writer.lives
        done = cleaned(db)
        assert {status for name, (status, *_) in done.items() if name.startswith("finished_") and done[name][2] == 0} >= {"left"}
        assert ids(db, "dead_jobs") == dead
        wait_until(lambda: writer.lives > before + 5, 30)
    done = cleaned(db)
    assert "left" not in {status for status, *_ in done.values()}
    before = writer.lives
    wait_until(lambda: writer.lives > before + 5, 30)
    writer.stop()
    assert ids(db, "dead_jobs") == dead
    assert len([name for name in partitions(db) if "_kept" in name]) == 1


def test_a_row_that_somebody_has_in_hand_is_passed_by(db: Session, dsn: str) -> None:
    keep(db, None, "succeeded", "1 day")
    held, free = end_long_ago(db, "3 days"), end_long_ago(db, "3 days")
    other = Session(dsn)
    with other.connection.transaction():
        other.do("select from bridge.finished where id = %s for update", held)
        cleaned(db)
        assert ids(db) == {held}
    assert free not in ids(db)


def test_a_dry_run_names_each_table_and_changes_nothing(db: Session) -> None:
    end_long_ago(db, "40 days")
    dead = end_long_ago(db, "40 days", "failed")
    db.report()
    db.do("update bridge.worker set seen_at = now() - interval '31 days'")
    db.do("select bridge.wait_for(array[gen_random_uuid()])")
    db.do("update bridge.waiter set registered_at = now() - interval '2 days'")
    before = db.one("select count(*) from bridge.cleanup_log")
    day = db.one(DAY, "40 days")
    db.do(f"analyze bridge.finished_{day}")
    found = cleaned(db, dry_run=True)
    assert found["worker"] == ("planned", 1, 0, 0)
    assert found["waiter"][1] == 1
    assert found[f"finished_{day}"][::2] == ("planned", 1)
    assert (db.one("select count(*) from bridge.cleanup_log"), len(ids(db)), dead in ids(db)) == (before, 2, True)
    done = cleaned(db)
    assert (done["worker"][1], done["waiter"][1], done[f"finished_{day}"][2]) == (1, 1, 1)
    columns = "by, status, deleted, kept, duration is not null"
    whole = db.rows(f"select {columns} from bridge.cleanups where operation = 'cleanup' order by id desc limit 1")
    by, status, deleted, kept, timed = whole[0]
    assert (by, status, kept, timed) == (db.one("select session_user"), "done", 1, True)
    assert deleted >= 3


def test_a_tick_cleans_up_where_nobody_has_for_long_and_goes_on_a_batch_a_tick(db: Session) -> None:
    end_long_ago(db, "40 days")
    db.tick()
    assert len(ids(db)) == 1, "the first is due a while after the install"
    db.do("update bridge.cleanup_log set began_at = now() - interval '26 hours'")
    db.do("update bridge.setting set value = '0' where name = 'cleanup_every'")
    db.tick()
    assert db.one("select count(*) from bridge.cleanup_log") == 1
    db.do("update bridge.setting set value = '90000' where name = 'cleanup_every'")

    def whole() -> Any:
        db.tick()
        return db.one("select status from bridge.cleanups where by = 'tick' and operation = 'cleanup'")

    assert whole() == "running"
    assert whole() == "running"
    wait_until(lambda: whole() == "done", 30)
    assert ids(db) == set()


def test_whether_a_day_holds_a_dead_letter_is_asked_of_the_index_alone(db: Session) -> None:
    end_long_ago(db, "40 days")
    day = f"finished_{db.one(DAY, '40 days')}"
    db.do(f"insert into bridge.{day} select f.* from bridge.{day} f, generate_series(1, 50000)")
    db.do(f"vacuum analyze bridge.{day}")
    read = f"select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_user_tables where relname = '{day}'"
    with db.connection.transaction(force_rollback=True):
        before = db.one(read)
        assert db.one("select (bridge.look_into(d.todo)).stays from bridge.plan_days(now()) d where d.table_name = %s", day) is False
        assert db.one(read) - before < 10
    db.do(f"truncate bridge.{day}")


def test_a_table_that_a_cleanup_is_told_of_is_cleaned_and_one_that_fails_does_not_stop_the_others(db: Session) -> None:
    db.do("create table bridge.test_log (at timestamptz, keep boolean)")
    db.do("insert into bridge.test_log select now() - interval '40 days' * (n % 2), n % 4 = 1 from generate_series(1, 40) n")
    db.do("select bridge.clean_table('test_log', 'at', 'log_retention', 'not v.keep')")
    db.do("select bridge.clean_table('not_there', 'at', 'log_retention')")
    db.do("select bridge.clean_table('drainer', 'at', 'retention')")
    done = cleaned(db)
    assert done["test_log"][:2] == ("done", 10)
    assert done["drainer"][0] == "failed"
    assert "not_there" not in done
    db.do("drop table bridge.test_log")


def test_a_batch_reads_the_next_pages_of_its_table_and_no_other(db: Session) -> None:
    db.do("create table bridge.test_log (at timestamptz, filler text)")
    db.do("insert into bridge.test_log select now() - interval '40 days', repeat('x', 400) from generate_series(1, 50000)")
    db.do("analyze bridge.test_log")
    read = "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_user_tables where relname = 'test_log'"
    batch = "select deleted, after::text from bridge.delete_batch('bridge.test_log', %s, %s::tid, 100)"
    with db.connection.transaction(force_rollback=True):
        deleted, after = db.rows(batch, "v.at > now()", "(0,0)")[0]
        assert (deleted, after) == (0, "(1024,0)")
        assert db.one(read) < 25000
        deleted, after = db.rows(batch, "v.at < now()", "(1024,0)")[0]
        assert (deleted, after.startswith("(102")) == (100, True)
    db.do("load 'auto_explain'")
    plans: list[str] = []
    db.connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = notice"):
        db.do(f"set auto_explain.{setting}")
    db.do("select bridge.delete_batch('bridge.test_log', 'v.at < now()', '(1024,0)', 100)")
    db.do("set auto_explain.log_min_duration = -1")
    text = "\n".join(plans)
    assert "Tid Range Scan on test_log" in text, text
    assert "Seq Scan on test_log" not in text, text
    db.do("drop table bridge.test_log")


def test_a_day_whose_jobs_a_rule_keeps_longer_is_looked_through_by_parts_and_they_are_put_aside(db: Session) -> None:
    keep(db, "kept", None, "90 days")
    kept, gone = end_long_ago(db, "40 days", queue="kept"), end_long_ago(db, "40 days")
    day = f"finished_{db.one(DAY, '40 days')}"
    filler = "'other', 9, json_build_array(repeat('x', 400)), f.kwargs"
    columns = "seq, id, task, queue, rank, args, kwargs, size, max_attempts, attempts, losses, run_at, created_at, finished_at, status"
    db.do(
        f"""insert into bridge.{day} ({columns}) select f.seq, gen_random_uuid(), f.task, {filler}, 1, 1, 1, 0, f.run_at, f.created_at,
        f.finished_at, f.status from bridge.{day} f, generate_series(1, 20000) where f.id = %s""",
        gone,
    )
    assert db.one(f"select pg_relation_size('bridge.{day}') / 8192") > 1024
    todo = db.one("select todo from bridge.plan_days(now()) where table_name = %s", day)
    seen = "select after::text from bridge.look_into(%s)"
    db.do(f"delete from bridge.{day} where id = %s", kept)
    assert db.one(seen, Jsonb(todo)) == "(1024,0)"
    db.do(f"insert into bridge.{day} ({columns}) select {columns.replace('queue', quoted('kept'))} from bridge.{day} where id = %s", gone)
    done = cleaned(db)
    assert done[day][2] == 1
    assert [db.field(job, "queue") for job in ids(db)] == ["kept"]
    assert db.one("select count(*) from pg_class where relkind = 'r' and relname ~ '^attempt_kept'") == 1
    cleaned(db, "91 days")
    assert ids(db) == set()


def quoted(word: str) -> str:
    return f"'{word}'"


def test_a_killed_cleanup_is_gone_on_with(db: Session) -> None:
    keep(db, None, "succeeded", "1 day")
    gone = end_long_ago(db, "3 days")
    day = f"finished_{db.one(DAY, '3 days')}"
    db.do(f"insert into bridge.{day} select f.* from bridge.{day} f, generate_series(1, 30000)")
    environment = {**os.environ, "BRIDGE_DATABASE_URL": db.dsn, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "bridge", "cleanup"], env=environment, cwd=ROOT)
    deleted = "select coalesce(sum(deleted), 0) from bridge.cleanups where table_name = %s"
    wait_until(lambda: db.one(deleted, day) > 0, 60)
    process.kill()
    process.wait()
    session = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'bridge cleanup'"
    wait_until(lambda: db.one(session) == 0, 30)
    count = f"select count(*) from bridge.{day}"
    left = db.one(count)
    assert db.one(deleted, day) == 30001 - left, "the log says what is gone"
    assert 0 < left < 30001
    db.do("call bridge.cleanup_loop()")
    assert (db.one(count), db.one(deleted, day), ids(db)) == (0, 30001, set())
    assert db.one("select count(*) from bridge.cleanups where operation = 'cleanup' and status = 'done' and by <> 'install'") == 1, gone
