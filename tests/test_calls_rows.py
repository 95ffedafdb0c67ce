"""What a Celery call carries is in its row, with the broker down: options, routing, bodies of every kind, and what priorities mean."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import pickle
import uuid
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError
from kombu.serialization import loads

from bridge.errors import InvalidArgumentError
from bridge.job import job_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_calls import MakeApp
    from fix_sql import Session

pytestmark = pytest.mark.versions

ROW = "select task, queue, rank, args, kwargs, embed, payload, content_type, content_encoding, headers, properties, expires_at, run_at"


def row_of(db: Session, result: Any) -> dict[str, Any]:
    names = ROW.removeprefix("select ").split(", ")
    return dict(zip(names, db.rows(f"{ROW} from bridge.job where id = %s", job_id(result.id))[0], strict=True))


def test_every_option_of_a_call_is_in_its_row(caller: Any, db: Session) -> None:
    @caller.task(name="calls.all")
    def all_of_them(number: int, *, word: str) -> None: ...

    result = all_of_them.apply_async(
        (1,), {"word": "två"}, task_id="order/7 ü", queue="mail", headers={"mine": {"deep": [1]}}, shadow="letters", time_limit=30,
        soft_time_limit=20, ignore_result=True, priority=3, reply_to="somebody", message_id="m-1",
    )  # fmt: skip
    row = row_of(db, result)
    assert (row["task"], row["queue"], row["args"], row["kwargs"]) == ("calls.all", "mail", [1], {"word": "två"})
    headers = row["headers"]
    assert {name: headers[name] for name in ("id", "mine", "shadow", "timelimit", "ignore_result", "retries", "root_id", "lang")} == {
        "id": "order/7 ü", "mine": {"deep": [1]}, "shadow": "letters", "timelimit": [30, 20], "ignore_result": True, "retries": 0,
        "root_id": "order/7 ü", "lang": "py",
    }  # fmt: skip
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("(1,)", "{'word': 'två'}")
    assert row["properties"] == {
        "priority": 3, "reply_to": "somebody", "correlation_id": "order/7 ü", "message_id": "m-1", "delivery_mode": 2, "exchange": "",
        "routing_key": "mail",
    }  # fmt: skip
    assert db.rows("select task_id, id, status from bridge.jobs") == [("order/7 ü", job_id("order/7 ü"), "queued")]


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_a_tasks_own_options_are_in_the_row_too(caller: Any, db: Session) -> None:
    @caller.task(name="calls.own", queue="own", priority=6, serializer="pickle", time_limit=9, expires=60)
    def own(number: int) -> None: ...

    row = row_of(db, own.delay(1))
    assert (row["queue"], row["rank"], row["content_type"], row["headers"]["timelimit"]) == (
        "own",
        15,
        "application/x-python-serialize",
        [9, None],
    )
    assert row["expires_at"] > row["run_at"]


def in_an_hour(zone: dt.tzinfo = dt.UTC) -> dt.datetime:
    return dt.datetime.now(zone) + dt.timedelta(hours=1)


@pytest.mark.parametrize(
    "option",
    [
        lambda: {"countdown": 3600},
        lambda: {"eta": in_an_hour()},
        lambda: {"eta": in_an_hour(dt.timezone(dt.timedelta(hours=5)))},
        lambda: {"eta": in_an_hour().replace(tzinfo=None)},
        lambda: {"eta": in_an_hour().isoformat()},
    ],
    ids=["countdown", "utc", "other zone", "no zone", "text"],
)
def test_a_delay_of_any_form_is_the_rows_due_time_and_costs_no_worker(caller: Any, db: Session, option: Callable[[], Any]) -> None:
    db.do("set timezone = 'Asia/Tokyo'")
    earliest = in_an_hour()
    row = row_of(db, caller.send_task("calls.later", **option()))
    assert earliest <= row["run_at"] <= in_an_hour()
    assert row["headers"]["eta"] is None
    assert db.one("select status from bridge.jobs") == "scheduled"


@pytest.mark.parametrize("expires", [3600, dt.timedelta(hours=1).total_seconds(), dt.datetime(2100, 1, 1), "2100-01-01T00:00:00"])  # noqa: DTZ001
def test_an_expiry_of_any_form_is_the_rows_end_and_stays_in_the_message(caller: Any, db: Session, expires: Any) -> None:
    row = row_of(db, caller.send_task("calls.soon", expires=expires))
    assert dt.datetime.fromisoformat(row["headers"]["expires"]).replace(tzinfo=dt.UTC) == row["expires_at"]


def test_a_header_that_is_no_json_keeps_its_type(caller: Any, db: Session) -> None:
    day = dt.datetime(2030, 5, 1, tzinfo=dt.UTC)
    row = row_of(db, caller.send_task("calls.headers", headers={"day": day, "id_of": uuid.UUID(int=5), "none": float("nan")}))
    assert row["headers"]["day"] == {"__type__": "datetime", "__value__": day.isoformat()}
    assert (row["headers"]["id_of"]["__type__"], row["headers"]["none"]) == ("uuid", "NaN")


@pytest.mark.parametrize(("serializer", "kind"), [("pickle", "x-python-serialize"), ("yaml", "x-yaml"), ("msgpack", "x-msgpack")])
def test_a_body_of_another_serializer_is_kept_as_its_bytes(caller: Any, db: Session, serializer: str, kind: str) -> None:
    row = row_of(db, caller.send_task("calls.body", (1, "två"), {"deep": {"er": 1.5}}, serializer=serializer))
    assert row["content_type"] == f"application/{kind}"
    body = loads(row["payload"], row["content_type"], row["content_encoding"], accept=[row["content_type"]])
    assert [list(body[0]), body[1]] == [[1, "två"], {"deep": {"er": 1.5}}]


@pytest.mark.parametrize(
    ("compression", "header", "decompress"),
    [
        ("gzip", "application/x-gzip", zlib.decompress), ("zlib", "application/x-gzip", zlib.decompress),
        ("bzip2", "application/x-bz2", bz2.decompress),
    ],
)  # fmt: skip
def test_a_compressed_body_is_kept_compressed_and_names_how(
    caller: Any, db: Session, compression: str, header: str, decompress: Any
) -> None:
    row = row_of(db, caller.send_task("calls.body", ["x" * 5000], compression=compression))
    assert row["headers"]["compression"] == header
    assert len(row["payload"]) < 500
    body = (gzip.decompress if row["payload"][:2] == b"\x1f\x8b" else decompress)(bytes(row["payload"]))
    assert b"x" * 5000 in body


def test_settings_for_serializer_and_compression_count(make_caller: MakeApp, db: Session) -> None:
    app = make_caller(task_serializer="pickle", task_compression="bzip2", result_serializer="json")
    row = row_of(db, app.send_task("calls.body", ({1, 2},)))
    assert pickle.loads(bz2.decompress(row["payload"]))[0] == ({1, 2},)  # noqa: S301 - our own


def test_arguments_that_a_serializer_cannot_take_raise_as_in_celery_and_make_no_row(caller: Any, db: Session) -> None:
    with pytest.raises(EncodeError, match="not JSON serializable"):
        caller.send_task("calls.body", (object(),))
    assert db.one("select count(*) from bridge.jobs") == 0


def test_routes_and_named_exchanges_lead_where_they_led(make_caller: MakeApp, db: Session) -> None:
    queues = [Queue("video", Exchange("media", type="topic"), routing_key="video.#"), Queue("mail", max_priority=5), Queue("plain")]
    app = make_caller(
        task_queues=queues, task_routes={"mail.*": {"queue": "mail"}, "video.*": {"queue": "video", "routing_key": "video.high"}}
    )  # fmt: skip
    calls = {"mail.send": {}, "video.cut": {}, "by.key": {"exchange": "media", "routing_key": "video.#"}, "a.b": {"queue": "plain"}}
    rows = {name: row_of(db, app.send_task(name, **options)) for name, options in calls.items()}
    where = {name: (row["queue"], row["properties"]["exchange"], row["properties"]["routing_key"]) for name, row in rows.items()}
    assert where == {
        "mail.send": ("mail", "", "mail"), "video.cut": ("video", "media", "video.high"), "by.key": ("video", "media", "video.#"),
        "a.b": ("plain", "", "plain"),
    }  # fmt: skip
    declared = {
        name: [(one["name"], one.get("max_priority")) for one in row["properties"].get("declare", ())] for name, row in rows.items()
    }
    assert declared == {"mail.send": [("mail", 5)], "video.cut": [("video", None)], "by.key": [("video", None)], "a.b": [("plain", None)]}


@pytest.mark.parametrize(
    ("broker", "order"),
    [
        ("redis://127.0.0.1:1", ["none", "0", "3", "9"]),
        ("rediss://127.0.0.1:1", ["none", "0", "3", "9"]),
        ("sentinel://127.0.0.1:1", ["none", "0", "3", "9"]),
        ("amqp://127.0.0.1:1", ["9", "3", "none", "0"]),
        (["pyamqp://127.0.0.1:1", "pyamqp://127.0.0.1:2"], ["9", "3", "none", "0"]),
        ("pyamqp://127.0.0.1:1;pyamqp://127.0.0.1:2", ["9", "3", "none", "0"]),
        ("filesystem://", ["none", "9", "3", "0"]),
    ],
)
def test_a_priority_means_what_it_meant_on_the_apps_broker(make_caller: MakeApp, db: Session, broker: Any, order: list[str]) -> None:
    app = make_caller(broker=broker)
    for priority in (None, 9, 3, 0):
        app.send_task(str(priority).lower(), priority=priority)
    assert [row[0] for row in db.rows("select task from bridge.job order by rank, seq")] == order


def test_a_delay_on_quorum_queues_waits_in_the_row_and_takes_no_detour(make_caller: MakeApp, db: Session) -> None:
    quorum = {"x-queue-type": "quorum"}
    queue = Queue("orders", Exchange("orders", type="topic"), routing_key="orders", queue_arguments=quorum)
    app = make_caller(broker="amqp://127.0.0.1:1", task_queues=[queue], task_default_queue="orders")
    row = row_of(db, app.send_task("orders.pay", countdown=3600))
    assert (row["queue"], row["properties"]["exchange"], row["properties"]["routing_key"]) == ("orders", "orders", "orders")
    assert row["properties"]["declare"][0]["queue_arguments"] == quorum
    assert db.one("select status from bridge.jobs") == "scheduled"


def test_the_old_message_protocol_is_refused_in_words(make_caller: MakeApp, db: Session) -> None:
    app = make_caller(task_protocol=1)
    with pytest.raises(InvalidArgumentError, match=r"task calls.old is sent with task_protocol 1: set task_protocol = 2"):
        app.send_task("calls.old")
    assert db.one("select count(*) from bridge.jobs") == 0


def test_a_header_with_a_sign_that_postgres_cannot_hold_is_kept_without_it(caller: Any, db: Session) -> None:
    row = row_of(db, caller.send_task("calls.odd", headers={"odd": {"in": ["nul \x00", "half \ud83d", "whole \U0001f600", "\\u0000"]}}))
    assert row["headers"]["odd"] == {"in": ["nul \ufffd", "half \ufffd", "whole \U0001f600", "\\u0000"]}
