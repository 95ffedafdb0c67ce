"""Advice on storage: each trouble is named with a command that mends it, and a healthy database is told nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_doctor import Doctor
from fix_servers import ROOT, wait_until
from fix_sql import Session

from bridge.doctor import Grade

if TYPE_CHECKING:
    from collections.abc import Iterator


def advice(db: Session, kind: str, **limits: str) -> list[tuple[Any, ...]]:
    named = ", ".join(f"{name} => {value}" for name, value in limits.items())
    return db.rows(f"select name, severity, found, remedy, value from bridge.upkeep({named}) where kind = %s", kind)


def test_a_database_in_order_is_told_nothing(db: Session) -> None:
    db.enqueue()
    db.finish(*db.run())
    assert db.rows("select * from bridge.upkeep() where kind not in ('slot', 'snapshot', 'prepared', 'wraparound')") == []


def test_a_session_that_holds_a_snapshot_is_named_with_the_command_that_ends_it(db: Session, dsn: str) -> None:
    holder = Session(dsn)
    with holder.connection.transaction():
        holder.do("set transaction isolation level repeatable read")
        pid = holder.one("select pg_backend_pid()")
        ((name, severity, found, remedy, value),) = [row for row in advice(db, "snapshot", snapshot_age="'0'") if row[0] == str(pid)]
        assert (name, severity) == (str(pid), "warning")
        assert "idle in transaction" in found
        assert remedy.startswith(f"select pg_terminate_backend({pid})")
        assert "idle_in_transaction_session_timeout" in remedy
        assert value >= 0
        assert str(pid) not in {row[0] for row in advice(db, "snapshot")}, "five minutes are allowed"


@pytest.fixture
def slot(db: Session) -> Iterator[str]:
    name = f"bridge_test_{db.one('select pg_backend_pid()')}"
    db.do("select pg_create_physical_replication_slot(%s, true)", name)
    yield name
    db.do("select pg_drop_replication_slot(%s)", name)


def test_a_replication_slot_that_nobody_reads_is_named(db: Session, slot: str) -> None:
    ((name, severity, found, remedy, _),) = [row for row in advice(db, "slot") if row[0] == slot]
    assert (name, severity) == (slot, "warning")
    assert "read by nobody" in found
    assert "of WAL" in found
    assert f"select pg_drop_replication_slot('{slot}')" in remedy
    assert "max_slot_wal_keep_size" in remedy


def test_an_index_that_is_not_valid_and_one_that_outgrew_its_rows_are_to_be_built_anew(db: Session) -> None:
    db.do("create index concurrently test_broken on bridge.job (task)")
    db.do("update pg_index set indisvalid = false where indexrelid = 'bridge.test_broken'::regclass")
    ((name, severity, _, remedy, _),) = advice(db, "invalid_index")
    assert (name, severity) == ("bridge.test_broken", "error")
    assert "drop index concurrently bridge.test_broken" in remedy
    db.do("drop index bridge.test_broken")

    db.do("insert into bridge.unique_key (key, seq) select 'key ' || n, n from generate_series(1, 20000) n")
    db.do("delete from bridge.unique_key where seq > 10")
    bloated = wait_until(lambda: advice(db, "index_bloat", index_size="100000"), 20, "statistics")
    ((name, severity, found, remedy, value),) = [row for row in bloated if row[0] == "bridge.unique_key_pkey"]
    assert severity == "info"
    assert "unique_key" in found
    assert value > 500_000
    assert advice(db, "index_bloat") == [], "small ones are left alone"
    db.do(remedy)
    assert db.one("select pg_relation_size('bridge.unique_key_pkey')") < 100_000
    db.do("delete from bridge.unique_key")


def test_settings_of_a_table_that_are_not_ours_are_told_with_the_reason_for_ours(db: Session) -> None:
    db.do("alter table bridge.ready reset (autovacuum_vacuum_threshold)")
    ((name, severity, found, remedy, _),) = advice(db, "options")
    assert (name, severity) == ("bridge.ready", "info")
    assert "autovacuum_vacuum_threshold=5000" in found
    command, reason = remedy.split(", because: ")
    assert "live seconds" in reason
    db.do(command)
    assert advice(db, "options") == []


def test_a_cleanup_that_is_long_overdue_or_failed_is_told(db: Session) -> None:
    db.do("update bridge.cleanup_log set began_at = now() - interval '4 days'")
    assert [row[0] for row in advice(db, "cleanup")] == ["late"]
    db.do("call bridge.cleanup_loop()")
    assert advice(db, "cleanup") == []


def test_the_doctor_tells_the_worst_of_it(db: Session, dsn: str) -> None:
    doctor = Doctor(dsn)
    assert (doctor.look("upkeep").status, doctor.look("upkeep").remedy) == (Grade.OK, "")
    db.do("alter table bridge.ready reset (autovacuum_vacuum_threshold)")
    told = doctor.look("upkeep")
    assert (told.status, "alter table bridge.ready set" in told.remedy) == (Grade.OK, True)
    db.do("update bridge.cleanup_log set began_at = now() - interval '4 days'")
    late = doctor.look("upkeep")
    assert (late.status, late.remedy.startswith("call bridge.cleanup_loop()")) == (Grade.WARNING, True)
    assert "and 1 more, see: bridge cleanup advice" in late.found


def test_the_settings_of_tables_are_what_the_document_says_with_the_same_reasons(db: Session) -> None:
    text = (ROOT / "docs/upkeep.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+ = \d+`(?:, )?)+) \| (.+) \|$", text, re.MULTILINE)
    document = {
        name: (set(re.findall(r"`(\w+) = (\d+)`", options)), reason)
        for names, options, reason in told
        for name in re.findall(r"`(\w+)`", names)
    }
    rows = db.rows("select table_name, options, reason from bridge.storage_options()")
    assert document == {name: ({tuple(option.split("=")) for option in options}, reason) for name, options, reason in rows}
    catalog = """
        select relname, reloptions from pg_class
        where relnamespace = 'bridge'::regnamespace and relkind = 'r' and not relispartition and reloptions is not null"""
    assert {name: set(options) for name, options in db.rows(catalog)} == {name: set(options) for name, options, _ in rows}


def test_whoever_may_only_look_is_advised_too(db: Session) -> None:
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_viewer")
        db.rows("select * from bridge.upkeep()")
        assert len(db.rows("select * from bridge.retentions")) == 2
        assert len(db.rows("select * from bridge.cleanups")) == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.do("select bridge.set_retention('a', keep => '1 day')")
