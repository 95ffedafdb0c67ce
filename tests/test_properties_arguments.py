"""Whatever arguments a caller gives, the task gets the same: through SQL, through a Celery call, through any serializer."""

from __future__ import annotations

import base64
import json
import math
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.serialization import loads
from psycopg.types.json import Jsonb

import bridge
from bridge.message import envelope, redis_messages
from bridge.queries.dispatch import Claimed, claim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# What JSON in Postgres (jsonb) can hold: no NUL, no lone surrogate, no NaN, no infinity.
plain_text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | plain_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=12,
)
# What Python's json sends besides.
wild_text = st.text(max_size=20) | st.sampled_from(["\x00", "\ud800", "\udfff\ud800", "\\u0000", '"\\ud83d"', "NaN", "%s", "\u2028", "😀"])
wild_numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0, math.inf, math.nan])
wild = st.recursive(
    st.none() | st.booleans() | wild_numbers | wild_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(wild_text, inner, max_size=4),
    max_leaves=12,
)


def same(got: Any, sent: Any) -> bool:
    """Equal, NaN too. A float may arrive as the whole number that its digits say: jsonb keeps 2e16 as 20000000000000000."""
    if isinstance(sent, list | tuple):
        return len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, dict):
        return got.keys() == sent.keys() and all(same(got[key], value) for key, value in sent.items())
    if isinstance(sent, float) and not isinstance(got, bool):
        return float(got) == sent or (math.isnan(sent) and math.isnan(got))
    return type(got) is type(sent) and bool(got == sent)


@pytest.fixture(scope="module")
def connection(databases: Databases, template: str) -> Iterator[psycopg.Connection[Any]]:
    name = databases.create(template)
    with psycopg.connect(databases.server.dsn_of(name), autocommit=True) as connection:
        yield connection
    databases.drop(name)


@pytest.fixture(scope="module")
def app(connection: psycopg.Connection[Any]) -> Iterator[Any]:
    """An application on the caller's side of a broker that nobody can reach: it is not needed to make a job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRIDGE_DATABASE_URL", connection.info.dsn)
        app = Celery("properties", broker="redis://127.0.0.1:1/0", backend="bridge://", set_as_current=False)
        app.conf.update(accept_content=["json", "pickle", "yaml"], task_compression=None)
        bridge.install(app)
        yield app


def claimed(connection: psycopg.Connection[Any]) -> Claimed:
    """The one job that is ready, as a drainer gets it."""
    jobs = claim(connection, uuid.uuid4(), "celery", uuid.uuid4(), limit=10, size=1 << 24)
    connection.execute("select bridge.end_delivery(%s, %s, %s, 'cancelled', null)", (jobs[0].seq, jobs[0].token, uuid.uuid4()))
    assert len(jobs) == 1
    return jobs[0]


def as_celery_reads_it(job: Claimed) -> tuple[Any, dict[str, Any]]:
    """Body and headers from the bytes on the Redis list, by kombu's own decoder; the portable way says the same."""
    message = json.loads(redis_messages([job])[0])
    body = base64.b64decode(message["body"])
    portable = envelope(job)
    assert (portable.body, portable.content_type, portable.content_encoding) == (body, message["content-type"], message["content-encoding"])
    assert portable.headers == message["headers"]
    accept = {"application/json", "application/x-python-serialize", "application/x-yaml"}
    return loads(body, message["content-type"], message["content-encoding"], accept=accept), message["headers"]


@quick
@given(args=st.lists(plain, max_size=4), kwargs=st.dictionaries(plain_text, plain, max_size=4))
def test_arguments_given_in_sql_reach_the_task(connection: psycopg.Connection[Any], args: Any, kwargs: Any) -> None:
    connection.execute("select bridge.enqueue('a.task', %s, %s)", (Jsonb(args), Jsonb(kwargs)))
    body, headers = as_celery_reads_it(claimed(connection))
    assert same(body[:2], [args, kwargs])
    assert body[2] == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert (headers["task"], headers["id"], headers["root_id"]) == ("a.task", headers["id"], headers["id"])


@quick
@given(args=st.lists(wild, max_size=4), kwargs=st.dictionaries(wild_text, wild, max_size=4))
def test_arguments_of_a_celery_call_reach_the_task(connection: psycopg.Connection[Any], app: Any, args: Any, kwargs: Any) -> None:
    result = app.send_task("a.task", args, kwargs)
    body, headers = as_celery_reads_it(claimed(connection))
    assert same(body[0], args)
    assert same(body[1], kwargs)
    assert headers["id"] == result.id


@quick
@given(args=st.lists(wild | st.binary(max_size=20) | st.tuples(st.integers()), max_size=4))
def test_arguments_that_are_pickled_reach_the_task(connection: psycopg.Connection[Any], app: Any, args: Any) -> None:
    app.send_task("a.task", args, serializer="pickle")
    body, _ = as_celery_reads_it(claimed(connection))
    assert same(list(body[0]), args)


@quick
@given(
    name=st.from_regex(r"[\w.\-é→]{1,60}", fullmatch=True),
    headers=st.dictionaries(st.text("abcxyz", min_size=3, max_size=6), plain, max_size=3),
    priority=st.integers(0, 9),
)
def test_name_and_headers_given_in_sql_reach_the_message(
    connection: psycopg.Connection[Any], name: str, headers: dict[str, Any], priority: int
) -> None:
    connection.execute("select bridge.enqueue(%s, headers => %s, priority => %s)", (name, Jsonb(headers), priority))
    _, sent = as_celery_reads_it(claimed(connection))
    assert sent["task"] == name
    assert same({key: sent[key] for key in headers}, headers)


@quick
@given(args=st.lists(wild, max_size=3))
def test_enqueue_from_python_gives_the_same_or_refuses_before_anything_is_written(connection: psycopg.Connection[Any], args: Any) -> None:
    try:
        bridge.enqueue("a.task", args, connection=connection)
    except bridge.BridgeError:
        assert connection.execute("select count(*) from bridge.job").fetchone() == (0,)
        return
    body, _ = as_celery_reads_it(claimed(connection))
    assert same(body[0], args)
