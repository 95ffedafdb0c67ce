"""From the last release to this one: the same schema as a fresh install, under traffic, with processes of both releases side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from apps.moving import TABLE
from fix_background import Background
from fix_install import dump
from fix_moving import JOINED, Fleet, end
from fix_releases import RELEASED, install_released, wheel_of
from fix_servers import drainers_of, wait_for_value, workers_of
from fix_sql import Session
from invariants import assert_sound

import bridge
from bridge import schema
from bridge.errors import SchemaError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import Launcher, StartDrainer

# Releases of all processes that are there.
SOFTWARE = """select distinct split_part(software, ' ', 2) from (select software, stopped_at from bridge.worker
  union all select software, stopped_at from bridge.drainer) p where stopped_at is null order by 1"""
LONGEST = 10.0  # seconds for an enqueue beside the upgrade: three times what it may wait for locks and their commit


def test_the_release_that_is_still_served_is_kept(dsn: str) -> None:
    assert wheel_of(Session(dsn).one("select bridge.serves_from()")).exists()


def test_an_upgrade_makes_the_same_schema_as_a_fresh_install(old_dsn: str, dsn: str) -> None:
    schema.install(old_dsn)
    assert dump(old_dsn) == dump(dsn)
    schema.install(old_dsn)
    assert dump(old_dsn) == dump(dsn)


# What has rows of jobs: reading it all while writers wait takes longer the more there are.
LARGE = ("job", "finished", "attempt", "ready", "scheduled", "log_line", "dependency", "link")
BOUNDED = ("inflight",)  # by windows: an index over it is a matter of a second a million


def test_an_upgrade_reads_no_table_of_jobs_while_writers_wait(old_db: Session) -> None:
    """Neither an index nor a check over rows that are there, nor a table that is written anew."""
    tables = "select oid::regclass::text, relfilenode from pg_class where oid = any (%s::regclass[]) or relispartition order by 1"
    old_db.do("select bridge.make_days()")
    # Days that are over, as a database in use has them.
    old_db.do("create table bridge.attempt_20200101 (like bridge.attempt including all)")
    old_db.do("alter table bridge.attempt attach partition bridge.attempt_20200101 for values from ('2020-01-01') to ('2020-01-02')")
    names = [f"bridge.{name}" for name in LARGE]
    kept = [*names, *(f"bridge.{name}" for name in BOUNDED)]
    before = dict(old_db.rows(tables, kept))
    indexes = "select indexrelid::regclass::text from pg_index where indrelid = any (%s::regclass[]) and indisvalid"
    checks = "select conname from pg_constraint where conrelid = any (%s::regclass[]) and contype <> 'n' and convalidated"
    places = [*names, "bridge.attempt_20200101"]
    had = old_db.rows(indexes, places) + old_db.rows(checks, places)
    schema.install(old_db.dsn)
    after = dict(old_db.rows(tables, kept))
    assert {name: after[name] for name in before} == before
    assert set(old_db.rows(indexes, places) + old_db.rows(checks, places)) <= set(had)


def test_the_last_release_refuses_to_install_over_this_one(released: Path, dsn: str) -> None:
    said = install_released(released, dsn)
    assert f"schema is at {bridge.__version__}, these files are {RELEASED}: install with the newer release" in said
    assert schema.installed_version(dsn) == bridge.__version__


def test_this_release_does_not_start_on_the_last_ones_schema(old_dsn: str) -> None:
    with pytest.raises(SchemaError, match=f'schema is at {RELEASED}, this process needs {bridge.__version__}: run "bridge install"'):
        schema.check(old_dsn)


def test_an_upgrade_keeps_jobs_schedules_and_what_operators_have_set(old_db: Session) -> None:
    late, ready = old_db.enqueue(delay="1 hour"), old_db.enqueue(unique_key="one")
    child = old_db.enqueue(depends_on=[ready])
    done = old_db.enqueue(queue="done")
    old_db.finish(*old_db.run(queue="done"))
    old_db.do("select bridge.schedule('nightly', '0 3 * * *', 'a.task')")
    old_db.do("select bridge.pause('celery')")
    old_db.do("update bridge.setting set value = '7' where name = 'window'")
    schema.install(old_db.dsn)
    assert [old_db.status(job) for job in (late, ready, child, done)] == ["scheduled", "queued", "blocked", "succeeded"]
    assert old_db.rows("select name, cron, enabled from bridge.schedules") == [("nightly", "0 3 * * *", True)]
    assert old_db.one("select bridge.setting('window')") == 7
    old_db.do("select bridge.resume('celery')")
    old_db.finish(*old_db.run())
    assert old_db.status(child) == "queued"
    assert_sound(old_db.dsn)


class Callers(Background):
    """SQL callers that make jobs one by one, each its own transaction; they notice how long one took."""

    pause = 0.03

    def __init__(self, dsn: str) -> None:
        self.db = Session(dsn)
        self.ids: list[str] = []
        self.longest = 0.0
        super().__init__()

    def step(self) -> None:
        before = self.db.one("select clock_timestamp()")
        self.ids.append(str(self.db.enqueue("moving.work", args=f"[{len(self.ids)}]")))
        self.longest = max(self.longest, (self.db.one("select clock_timestamp()") - before).total_seconds())


@pytest.mark.timeout(400)
def test_a_fleet_is_upgraded_while_it_works(old_dsn: str, old: Launcher, launcher: Launcher, drainer: StartDrainer) -> None:
    env = JOINED | {"BRIDGE_DATABASE_URL": old_dsn}
    with psycopg.connect(old_dsn, autocommit=True) as sql:
        sql.execute(TABLE)
        before, after = Fleet(old, workers_of(old), sql), Fleet(launcher, workers_of(launcher), sql)
        old_drainer, old_worker, old_producer = drainers_of(old)(dsn=old_dsn), before.worker(env), before.producer(env)
        callers = Callers(old_dsn)
        before.wait_for_more(20)

        schema.install(old_dsn)
        # Old processes go on with what is made from now on, also when one of them is started anew.
        before.wait_for_more(20)
        assert sql.execute(SOFTWARE).fetchall() == [(RELEASED,)]
        old_worker = before.exchange(old_worker, before.worker(env))
        before.wait_for_more(20)

        new_producer = after.producer(env)
        drainer(dsn=old_dsn)
        after.worker(env)
        assert sql.execute(SOFTWARE).fetchall() == [(RELEASED,), (bridge.__version__,)]
        after.wait_for_more(20)
        for process in (old_producer, old_worker, old_drainer):
            end(process)
        after.wait_for_more(20)
        assert sql.execute(SOFTWARE).fetchall() == [(bridge.__version__,)]
        end(new_producer)
        callers.stop()

        called = before.called() | after.called() | set(callers.ids)
        wait_for_value(old_dsn, "select count(*) from bridge.jobs where status <> 'succeeded'", value=0, timeout=180)
        assert after.runs() == dict.fromkeys(called, (1, 1))
        assert after.one("select count(*) from bridge.jobs where result::text::int = 2 * (args->>0)::int and attempts = 1") == len(called)
    assert callers.longest < LONGEST
    assert_sound(old_dsn)
