"""Installing, and installing again under live traffic."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
from fix_install import dump, psql_all_files
from fix_servers import wait_until
from fix_sql import Session
from invariants import assert_sound

from bridge import schema

if TYPE_CHECKING:
    from fix_install import Traffic


def test_the_files_install_by_psql_in_one_transaction(empty_dsn: str) -> None:
    psql_all_files(empty_dsn)
    db = Session(empty_dsn)
    assert db.status(db.enqueue()) == "queued"


def test_psql_and_bridge_install_make_the_same_schema(empty_dsn: str, dsn: str) -> None:
    psql_all_files(empty_dsn)
    assert dump(empty_dsn) == dump(dsn)


def test_installing_again_changes_nothing_in_the_schema(dsn: str) -> None:
    before = dump(dsn)
    psql_all_files(dsn)
    schema.install(dsn)
    assert dump(dsn) == before


def test_installing_again_keeps_jobs_and_what_an_operator_has_set(db: Session, dsn: str) -> None:
    identity = db.enqueue(delay="1 hour")
    db.do("update bridge.setting set value = '7' where name = 'window'")
    db.do("select bridge.pause('celery')")
    schema.install(dsn)
    assert db.status(identity) == "scheduled"
    assert db.one("select bridge.setting('window')") == 7
    assert db.rows("select kind, name, pause from bridge.pauses") == [("queue", "celery", "soft")]


def test_install_says_what_drives_the_tick(empty_dsn: str) -> None:
    said = schema.install(empty_dsn)
    assert said.startswith(f"schema bridge {schema.installed_version(empty_dsn)} is installed; ")
    assert "the drainer ticks" in said


def test_two_who_install_at_once_take_turns(empty_dsn: str) -> None:
    threads = [threading.Thread(target=schema.install, args=(empty_dsn,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert schema.installed_version(empty_dsn)


def test_installing_again_does_not_stall_live_traffic(traffic: Traffic, dsn: str) -> None:
    wait_until(lambda: traffic.lives > 10, 30)
    before = traffic.lives
    psql_all_files(dsn)
    schema.install(dsn)
    wait_until(lambda: traffic.lives > before + 10, 30)
    traffic.stop()
    assert traffic.longest < 5
    assert_sound(dsn)


def test_installing_again_does_not_wait_for_a_reader_nor_does_traffic_behind_it(traffic: Traffic, dsn: str) -> None:
    reader = psycopg.connect(dsn)
    reader.execute("select count(*) from bridge.jobs")
    reader.execute("select * from bridge.job_queue_stats, bridge.workers, bridge.attempts, bridge.tick_state")
    wait_until(lambda: traffic.lives > 10, 30)
    schema.install(dsn)
    before = traffic.lives
    wait_until(lambda: traffic.lives > before + 10, 30)
    reader.rollback()
    reader.close()


def test_installing_again_does_not_wait_for_a_writer(traffic: Traffic, dsn: str) -> None:
    writer = Session(dsn)
    with writer.connection.transaction():
        writer.enqueue(queue="other")
        writer.do("select bridge.pause('third')")
        schema.install(dsn)
        before = traffic.lives
        wait_until(lambda: traffic.lives > before + 5, 30)


def test_without_pg_cron_install_says_who_ticks_and_succeeds(empty_dsn: str) -> None:
    psql_all_files(empty_dsn)
    assert "the drainer ticks" in Session(empty_dsn).one("select bridge.register_cron()")


def test_a_role_that_may_not_create_roles_installs_all_the_same(empty_dsn: str) -> None:
    owner = Session(empty_dsn)
    name = "bridge_test_owner"
    owner.do(f"drop role if exists {name}")
    owner.do(f"create role {name} login")
    owner.do(f"grant create on database {owner.connection.info.dbname} to {name}")
    plain = psycopg.conninfo.make_conninfo(empty_dsn, user=name)
    try:
        schema.install(plain)
        schema.install(plain)
        assert Session(plain).status(Session(plain).enqueue()) == "queued"
    finally:
        owner.do(f"drop owned by {name} cascade")
        owner.do(f"revoke all on database {owner.connection.info.dbname} from {name}")
        owner.do(f"drop role {name}")
