"""`bridge.enqueue_many` from Python: pages of a generator, one transaction, keys and parents in it, every bad job named."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

import bridge
from bridge.errors import ConflictError, InvalidArgumentError, PayloadTooLargeError
from bridge.ids import Ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_pairs import StartPairs
    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("ours")
PAGES = 2500  # jobs: two pages and a half


def numbered(count: int, **options: Any) -> Iterator[dict[str, Any]]:
    return ({"task": "a.task", "args": [number], **options} for number in range(count))


def test_pages_of_a_generator_become_jobs_in_the_order_of_their_ids(db: Session) -> None:
    ids = bridge.enqueue_many(numbered(PAGES))
    assert (len(ids), len(set(ids))) == (PAGES, PAGES)
    assert [bridge.get(ids[number]).args for number in (0, 999, 1000, PAGES - 1)] == [[0], [999], [1000], [PAGES - 1]]
    ready = "select j.args from bridge.ready r join bridge.job j using (seq) order by r.queue, r.rank, r.pos"
    assert db.rows(ready) == [([number],) for number in range(PAGES)]
    assert ids == list(ids)
    assert ids[-2:] == [ids[PAGES - 2], ids[PAGES - 1]]


def test_no_jobs_at_all_are_fine() -> None:
    assert bridge.enqueue_many([]) == []


def test_jobs_that_ask_for_different_things_get_them(db: Session) -> None:
    jobs = [
        {"task": "a", "args": ("ü\n\t\\",), "kwargs": {"k": None}, "queue": "q", "priority": 5},
        {"task": "b", "delay": 60, "timeout": 5.5, "headers": {"mine": 1}, "backoff": [1, 2]},
        {"task": "a", "args": None, "queue": None},
    ]
    ids = bridge.enqueue_many(jobs)
    assert [bridge.get(identity).status.value for identity in ids] == ["queued", "scheduled", "queued"]
    assert db.rows("select args, kwargs, queue, priority from bridge.jobs where task = 'a' order by seq") == [
        (["ü\n\t\\"], {"k": None}, "q", 5),
        ([], {}, "celery", 0),
    ]
    assert db.one("select headers from bridge.jobs where task = 'b'") == {"mine": 1, "timelimit": [5.5, None]}


def test_a_bulk_call_writes_what_single_calls_write(db: Session) -> None:
    options: dict[str, Any] = {
        "queue": "q", "priority": 3, "max_attempts": 2, "backoff": {"base": 1}, "timeout": 9, "soft_timeout": 8, "deadline": 70,
        "headers": {"a": 1}, "serial_key": "s", "retry_on": [ValueError], "webhook": "http://127.0.0.1:1/",
    }  # fmt: skip
    single = bridge.enqueue("a.task", [1], {"k": 2}, **options, unique_key="one", unique_until="started")
    (many,) = bridge.enqueue_many(
        [{"task": "a.task", "args": [1], "kwargs": {"k": 2}, **options, "unique_key": "two", "unique_until": "started"}]
    )
    written = """select to_jsonb(j) - array['seq', 'id', 'run_at', 'created_at', 'updated_at', 'unique_key', 'deadline', 'size'],
      j.deadline - j.run_at from bridge.job j where id = %s"""
    assert db.rows(written, many) == db.rows(written, single)


def test_a_transaction_of_the_caller_takes_the_jobs_along(db: Session, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        ids = bridge.enqueue_many(numbered(PAGES), connection=connection)
        assert db.one("select count(*) from bridge.jobs") == 0
        assert bridge.get(ids[-1], connection=connection).args == [PAGES - 1]
        connection.rollback()
        bridge.enqueue_many(numbered(PAGES), connection=connection)
    assert db.one("select count(*) from bridge.jobs") == PAGES


@pytest.mark.parametrize("own", [True, False])
def test_a_bad_job_in_a_later_page_leaves_nothing_of_the_earlier_ones(db: Session, own: bool) -> None:  # noqa: FBT001 - a parameter
    jobs = [*numbered(2300), {"task": "a.task", "priority": 11}]
    with pytest.raises(InvalidArgumentError, match=r"^jobs\[2300\]: priority is 11: give 0 to 9"):
        bridge.enqueue_many(jobs, connection=None if own else db.connection)
    assert db.one("select count(*) from bridge.jobs") == 0


def test_a_generator_that_fails_leaves_nothing(db: Session) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from numbered(PAGES)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        bridge.enqueue_many(broken())
    assert db.one("select count(*) from bridge.jobs") == 0
    assert len(bridge.enqueue_many(numbered(1))) == 1


def test_every_bad_job_is_named_with_its_argument(db: Session) -> None:
    db.enqueue("the.other", unique_key="taken")
    jobs: list[Any] = [
        {"task": "a.task"},
        {"task": "a.task", "priority": 11},
        {"task": "a.task", "delay": "a while"},
        {"task": "a.task", "prio": 1},
        {"task": "a.task", "args": "text"},
        {"task": "a.task", "depends_on": ["00000000-0000-4000-8000-000000000000"]},
        {"task": "a.task", "unique_key": "taken", "on_conflict": "raise"},
        {"task": "a task"},
    ]
    with pytest.raises(InvalidArgumentError) as caught:
        bridge.enqueue_many(jobs)
    faults = caught.value.faults
    assert [(fault.job, fault.argument, fault.code) for fault in faults] == [
        (1, "priority", "JB001"), (2, "delay", "JB001"), (3, "prio", "JB001"), (4, "args", "JB001"), (5, "depends_on", "JB001"),
        (6, "unique_key", "JB003"), (7, "task", "JB001"),
    ]  # fmt: skip
    said = "jobs[1]: priority is 11", 'jobs[2]: delay is "a while"', 'give an interval, such as "5 minutes"', "jobs[7]: task is 'a task'"
    for words in said:
        assert words in str(caught.value)
    assert db.one("select count(*) from bridge.jobs") == 1


def test_more_than_twenty_bad_jobs_are_named_up_to_there() -> None:
    with pytest.raises(InvalidArgumentError, match="; perhaps more") as caught:
        bridge.enqueue_many(numbered(100, priority=99))
    assert [fault.job for fault in caught.value.faults] == list(range(20))


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"task": "b", "args": [object()]}, InvalidArgumentError, "jobs[1]: args of task b is not JSON"),
        ({"task": "b", "args": [float("nan")]}, InvalidArgumentError, "jobs[1]: args of task b is not JSON"),
        ({"task": "b", "kwargs": {"a": "\x00"}}, InvalidArgumentError, "jobs[1]: kwargs of task b holds the character"),
        ({"task": "b", "args": ["\ud800"]}, InvalidArgumentError, "jobs[1]: args of task b is not JSON"),
        ({"task": "b", "headers": {"a": {1}}}, InvalidArgumentError, "jobs[1]: options of task b is not JSON"),
        (
            {"task": "b", "args": ["x" * 2_000_000]},
            PayloadTooLargeError,
            "jobs[1]: payload of task b is 2000006 bytes, the limit is 1048576",
        ),
        ({"task": "b", "depends_on": [1]}, InvalidArgumentError, "jobs[1]: depends_on names job 1 of this call, which is not before it"),
        ({"task": "b", "depends_on": [-1]}, InvalidArgumentError, "jobs[1]: depends_on names job -1 of this call"),
        (7, InvalidArgumentError, "jobs[1]: "),
    ],
)
def test_what_postgres_cannot_even_be_asked_is_named_too(db: Session, bad: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        bridge.enqueue_many([{"task": "a"}, bad])
    assert str(caught.value).startswith(words)
    assert db.one("select count(*) from bridge.jobs") == 0


def test_two_backslashes_before_a_u_are_no_character(db: Session) -> None:
    bridge.enqueue_many([{"task": "a", "args": ["\\u0000"]}])
    assert db.one("select args->>0 from bridge.jobs") == "\\u0000"


def test_keys_that_others_have_are_skipped_wherever_they_are(db: Session) -> None:
    taken = db.enqueue(unique_key="k 7")
    jobs = [{"task": "a.task", "args": [number], "unique_key": f"k {number % 1200}"} for number in range(PAGES)]
    ids = bridge.enqueue_many(jobs)
    assert ids[7] == taken
    assert [ids[number] for number in (1200, 1207, 2400)] == [ids[0], taken, ids[0]]
    assert db.one("select count(*), count(distinct unique_key) from bridge.jobs") == 1200
    with pytest.raises(ConflictError, match=r"jobs\[1\]: unique_key 'k 8' belongs to a job that has not ended"):
        bridge.enqueue_many([{"task": "a.task"}, {"task": "a.task", "unique_key": "k 8", "on_conflict": "raise"}])


def test_a_key_that_comes_twice_and_is_not_to_be_skipped_is_named() -> None:
    with pytest.raises(ConflictError, match=r"jobs\[1\]: unique_key 'k' belongs to an earlier job of this call"):
        bridge.enqueue_many([{"task": "a.task", "unique_key": "k", "on_conflict": "raise"}] * 2)


def test_jobs_of_one_call_replace_what_waits_and_each_other(db: Session) -> None:
    first = bridge.enqueue("a.task", ["first"], unique_key="k")
    jobs = [{"task": "a.task", "args": [word], "unique_key": "k", "on_conflict": "replace"} for word in ("second", "third")]
    assert bridge.enqueue_many([{"task": "b"}, *jobs])[1:] == [first, first]
    assert db.rows("select args from bridge.jobs where task = 'a.task'") == [(["third"],)]


def test_a_job_may_have_earlier_jobs_of_its_call_as_parents_also_from_another_page(db: Session) -> None:
    other = bridge.enqueue("the.parent", unique_key="shared")
    jobs: list[dict[str, Any]] = [{"task": "the.parent", "unique_key": "shared"}, {"task": "b.parent"}, *numbered(1100)]
    jobs += [{"task": "a.child", "depends_on": [0, 1]}, {"task": "a.grandchild", "depends_on": [len(jobs), str(other)]}]
    ids = bridge.enqueue_many(jobs)
    assert ids[0] == other
    parents = """select p.task from bridge.dependency d join bridge.job p on p.seq = d.parent join bridge.job c on c.seq = d.child
      where c.task = %s order by p.task"""
    assert db.rows(parents, "a.child") == [("b.parent",), ("the.parent",)]
    assert db.rows(parents, "a.grandchild") == [("a.child",), ("the.parent",)]


def test_a_million_jobs_would_need_the_memory_of_two_pages(db: Session) -> None:
    payload = "x" * 1000
    bridge.enqueue_many(numbered(1000, kwargs={"payload": payload}))  # what is made once
    tracemalloc.start()
    try:
        bridge.enqueue_many({"task": "a.task", "args": [number, payload]} for number in range(10_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1000 * (len(payload) + 200)
    assert db.one("select count(*) from bridge.ready") == 11_000


def test_ids_are_a_list_of_16_bytes_each() -> None:
    ids = Ids()
    ids.extend(["01a2150c9192725d8fdaf968e5c91638"] * 3)
    assert repr(ids) == "Ids(3)"
    assert ids != [ids[0]]
    with pytest.raises(IndexError):
        ids[3]


def test_bulk_calls_run_once_each_while_a_drainer_is_killed(pairs: StartPairs) -> None:
    running = pairs()
    ids = list(bridge.enqueue_many({"task": "ledger.work", "args": [number], "unique_key": f"k {number // 2}"} for number in range(300)))
    running.kill_a_drainer()
    jobs: list[dict[str, Any]] = [{"task": "ledger.work", "args": [number]} for number in range(100)]
    jobs += [{"task": "ledger.work", "args": [number], "depends_on": [number]} for number in range(100)]
    ids += bridge.enqueue_many(jobs)
    running.wait_for_all()
    assert len(set(ids)) == 350
    assert running.db.rows("select status, count(*) from bridge.jobs group by status") == [("succeeded", 350)]
    assert running.db.one("select count(distinct task_id) from ledger where event = 'end'") == 350


def test_a_connection_whose_rows_are_dicts_makes_jobs_too(db: Session, dsn: str) -> None:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        single = bridge.enqueue("a.task", connection=connection)
        many = bridge.enqueue_many([{"task": "a.task", "unique_key": "k"}] * 2, connection=connection)
        assert bridge.get(single, connection=connection).id == single
        assert bridge.cancel(single, connection=connection) is bridge.Status.CANCELLED
    assert {single, *many} == {row[0] for row in db.rows("select id from bridge.jobs")}
