"""What a run tells while it runs, in SQL: progress, lines of a log, checkpoints."""

from __future__ import annotations

import json
import threading
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_until
from fix_sql import Session

if TYPE_CHECKING:
    from fix_sql import Claim


def note(db: Session, claim: Claim, run: Any, *lines: Any, progress: Any = None) -> bool:
    """What a worker writes: lines are (level, message) or (level, message, left out, bytes of that)."""
    rows = [[0, *line] for line in lines]
    given = (claim.seq, run, None if progress is None else json.dumps(progress), json.dumps(rows) if rows else None)
    return bool(db.one("select bridge.note(%s, %s, %s::json, %s::json)", *given))


def messages(db: Session, identity: Any, **chosen: Any) -> list[tuple[int, str, str, int]]:
    return db.rows("select attempt_number, level, message, left_out from bridge.logs(%s, %s::integer)", identity, chosen.get("attempt"))  # type: ignore[return-value]


def refused(db: Session, code: str, query: str, *values: Any) -> str:
    with pytest.raises(psycopg.Error) as raised:
        db.do(query, *values)
    assert raised.value.sqlstate == code
    return f"{raised.value.diag.message_primary}: {raised.value.diag.message_hint}"


def test_progress_and_lines_of_a_run_are_there_while_it_runs_and_after(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    assert note(db, claim, run, ("info", "begun"), progress={"fraction": 0.1}) is True
    assert (db.field(identity, "progress"), messages(db, identity)) == ({"fraction": 0.1}, [(1, "info", "begun", 0)])
    assert note(db, claim, run, ("error", "odd page")) is True
    db.finish(claim, run)
    assert db.field(identity, "progress") == {"fraction": 0.1}
    assert messages(db, identity) == [(1, "info", "begun", 0), (1, "error", "odd page", 0)]


def test_a_superseded_run_adds_nothing(db: Session) -> None:
    identity = db.enqueue()
    claim, _ = db.run()
    assert note(db, claim, uuid.uuid4(), ("info", "late"), progress={"fraction": 1}) is False
    assert messages(db, identity) == []


def test_each_attempt_keeps_its_own_log_also_through_a_retry_by_hand(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    for words in ("first", "second"):
        claim, run = db.run()
        note(db, claim, run, ("info", words))
        db.fail(claim, run)
        db.do("select bridge.retry(%s)", identity)
    assert messages(db, identity) == [(1, "info", "first", 0), (2, "info", "second", 0)]
    assert messages(db, identity, attempt=2) == [(2, "info", "second", 0)]


def test_of_too_many_lines_the_first_half_and_the_last_are_kept_and_the_others_counted(db: Session) -> None:
    db.do("update bridge.setting set value = '6' where name = 'log_lines'")
    identity = db.enqueue()
    claim, run = db.run()
    for start in range(0, 20, 4):
        note(db, claim, run, *(("info", str(number)) for number in range(start, start + 4)))
    assert [(row[2], row[3]) for row in messages(db, identity)] == [("0", 0), ("1", 0), ("2", 0), ("17", 14), ("18", 0), ("19", 0)]


def test_too_many_bytes_are_cut_out_of_the_middle_as_well(db: Session) -> None:
    db.do("update bridge.setting set value = '4000' where name = 'log_bytes'")
    identity = db.enqueue()
    claim, run = db.run()
    for number in range(10):
        note(db, claim, run, ("info", f"{number}" * 1000))
    assert [(row[2][0], row[3]) for row in messages(db, identity)] == [("0", 0), ("1", 0), ("8", 6), ("9", 0)]


def test_what_a_worker_left_out_itself_is_counted_too(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    note(db, claim, run, ("info", "a"), ("info", "z", 500, 9000))
    assert messages(db, identity) == [(1, "info", "a", 0), (1, "info", "z", 500)]
    assert db.rows("select number, pos from bridge.log_line order by number") == [(1, 1), (502, 9002)]


def test_no_lines_are_kept_where_the_setting_says_none(db: Session) -> None:
    db.do("update bridge.setting set value = '0' where name = 'log_lines'")
    identity = db.enqueue()
    claim, run = db.run()
    assert note(db, claim, run, ("info", "a")) is True
    assert messages(db, identity) == []


def test_sql_that_a_task_calls_tells_by_the_jobs_id(db: Session) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    db.do("select bridge.progress(%s, 0.5, 'half way'), bridge.log(%s, 'copied 7 rows', 'warning')", identity, identity)
    assert db.field(identity, "progress") == {"fraction": 0.5, "message": "half way"}
    assert messages(db, identity) == [(1, "warning", "copied 7 rows", 0)]
    db.finish(claim, run)


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("bridge.progress({id}, 2)", "JB001", "fraction is 2: give a number from 0 to 1"),
        ("bridge.progress({id}, 'NaN')", "JB001", "fraction is NaN"),
        ("bridge.log({id}, 'x', 'loud')", "JB001", "level is 'loud': give debug, info, warning, error or critical"),
        ("bridge.log({id}, null)", "JB001", "message is null"),
        ("bridge.log({id}, 'x')", "JB006", "is queued: only a job that runs has progress and a log to add to"),
        ("bridge.progress(gen_random_uuid(), 0.5)", "JB002", "does not exist"),
        ("bridge.logs(gen_random_uuid())", "JB002", "does not exist"),
        ("bridge.save_checkpoint(gen_random_uuid(), '1')", "JB002", "does not exist"),
        ("bridge.save_checkpoint({id}, to_json(repeat('x', 65536)))", "JB004", "65538 bytes, the limit is 65536: keep a reference instead"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_remedy(db: Session, call: str, code: str, words: str) -> None:
    identity = db.enqueue()
    assert words in refused(db, code, "select " + call.format(id=f"'{identity}'"))


def test_a_line_and_the_end_of_its_run_at_once_leave_one_of_two_states(db: Session, dsn: str) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    other = Session(dsn)
    answers: list[bool] = []
    with db.connection.transaction():
        db.finish(claim, run)
        thread = threading.Thread(target=lambda: answers.append(note(other, claim, run, ("info", "late"), progress={"fraction": 1})))
        thread.start()
        wait_until(lambda: db.one("select exists (select from pg_locks where not granted)"), what="the line waits for the end")
    thread.join(20)
    assert (answers, messages(db, identity), db.field(identity, "progress")) == ([False], [], None)


def test_two_who_log_into_one_run_take_turns(db: Session, dsn: str) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    other = Session(dsn)
    with db.connection.transaction():
        note(db, claim, run, ("info", "worker"))
        thread = threading.Thread(target=lambda: other.do("select bridge.log(%s, 'program')", identity))
        thread.start()
        wait_until(lambda: db.one("select exists (select from pg_locks where not granted)"), what="the second waits for the first")
    thread.join(20)
    assert db.rows("select number, message from bridge.logs(%s)", identity) == [(1, "worker"), (2, "program")]
    db.finish(claim, run)


def test_a_checkpoint_survives_failures_and_a_retry_by_hand_and_ends_with_success(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    claim, run = db.run()
    assert db.one("select bridge.save_checkpoint(%s, '{\"page\": 3}', %s)", identity, run) is True
    db.fail(claim, run)
    db.do("select bridge.retry(%s)", identity)
    assert db.one("select bridge.checkpoint(%s)", identity) == {"page": 3}
    db.finish(*db.run())
    assert db.one("select bridge.checkpoint(%s)", identity) is None
    assert db.one("select count(*) from bridge.checkpoint") == 0


def test_a_superseded_run_saves_no_checkpoint(db: Session) -> None:
    identity = db.enqueue()
    claim, old = db.run()
    db.one("select bridge.lose(%s, %s, 'its worker died')", claim.seq, claim.token)
    _, new = db.run()
    assert db.one("select bridge.save_checkpoint(%s, '\"new\"', %s)", identity, new) is True
    assert db.one("select bridge.save_checkpoint(%s, '\"old\"', %s)", identity, old) is False
    assert db.one("select bridge.checkpoint(%s)", identity) == "new"


def test_a_checkpoint_and_the_loss_of_its_run_at_once_leave_one_of_two_states(db: Session, dsn: str) -> None:
    identity = db.enqueue()
    claim, run = db.run()
    other = Session(dsn)
    answers: list[bool] = []
    with db.connection.transaction():
        db.one("select bridge.lose(%s, %s, 'its worker died')", claim.seq, claim.token)
        save = ("select bridge.save_checkpoint(%s, '1', %s)", identity, run)
        thread = threading.Thread(target=lambda: answers.append(other.one(*save)))
        thread.start()
        wait_until(lambda: db.one("select exists (select from pg_locks where not granted)"), what="the save waits for the loss")
    thread.join(20)
    assert (answers, db.one("select bridge.checkpoint(%s)", identity)) == ([False], None)


def test_another_job_of_the_same_id_starts_from_nothing(db: Session) -> None:
    identity = uuid.uuid4()
    message = (
        "select bridge.enqueue_message(%s, null, 'a.task', 'celery', 9::smallint, '[]', '{}', null, null, null, null, null, '{}',"
        " null, null)"
    )
    db.do(message, identity)
    claim, run = db.run()
    db.do("select bridge.save_checkpoint(%s, '1', %s)", identity, run)
    db.fail(claim, run)
    db.do(message, identity)
    assert db.one("select bridge.checkpoint(%s)", identity) is None


def test_cleanup_drops_the_days_of_logs_and_old_checkpoints_of_jobs_that_have_ended(db: Session) -> None:
    identity = db.enqueue(max_attempts=1)
    claim, run = db.run()
    note(db, claim, run, ("info", "a"))
    db.do("select bridge.save_checkpoint(%s, '1', %s)", identity, run)
    db.fail(claim, run)
    day = db.one("select to_char(now() at time zone 'utc', 'YYYYMMDD')")

    def cleanup(dry_run: str) -> dict[str, int]:
        return dict(db.rows(f"select table_name, found from bridge.cleanup({dry_run}, clock_timestamp() + interval '40 days')"))

    assert "checkpoint" not in cleanup("true"), "a dead letter may go on from it"
    db.do("select bridge.discard(%s)", identity)
    assert cleanup("true")["checkpoint"] == 1
    assert f"log_line_{day}" in cleanup("false")
    assert db.one("select (select count(*) from bridge.log_line) + (select count(*) from bridge.checkpoint)") == 0


def test_progress_is_an_update_in_place_and_lines_leave_the_hot_tables_alone(db: Session) -> None:
    db.enqueue()
    claim, run = db.run()
    for number in range(20):
        note(db, claim, run, ("info", "a line"), progress={"fraction": number / 20, "message": "x" * 100})
    db.do("select pg_stat_force_next_flush()")
    query = "select n_tup_upd - n_tup_hot_upd from pg_stat_user_tables where schemaname = 'bridge' and relname = %s"
    # The mark and the start move the row once each at most; of twenty updates of the progress a page may have to be left once.
    assert db.one(query, "inflight") <= 3
    assert db.rows("select relname from pg_stat_user_tables where relname in ('job', 'ready') and n_tup_upd > 0") == []
    db.finish(claim, run)
