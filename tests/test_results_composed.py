"""Results over the application's own backend: it keeps them as it did, chords and all, and the rows follow."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult, GroupResult
from fix_servers import wait_until
from psycopg import conninfo

import bridge
from bridge.job import job_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_stack import Stack

PATIENCE = 60  # seconds


def sqlalchemy_url(dsn: str) -> str:
    """The URL of a database as Celery's own database backend takes it."""
    parts = conninfo.conninfo_to_dict(dsn)
    password = f":{quote(str(parts['password']))}" if parts.get("password") else ""
    place = f"host={quote(str(parts['host']), safe='/')}&port={parts.get('port', 5432)}"
    return f"db+postgresql+psycopg://{parts['user']}{password}@/{parts['dbname']}?{place}"


@pytest.fixture(scope="module", params=["redis", "database"])
def kept(request: pytest.FixtureRequest, bare_stack: Stack) -> Iterator[str]:
    """The URL of the application's own backend; drainer and worker run over it."""
    url = bare_stack.broker_url if request.param == "redis" else sqlalchemy_url(bare_stack.dsn)
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.chords", env={"C_FORCE_ROOT": "1", "BRIDGE_TEST_RESULT_BACKEND": f"bridge+{url}"})
    yield url
    bare_stack.kill_all()


@pytest.fixture
def app(kept: str, bare_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", bare_stack.dsn)
    app = Celery("client", broker=bare_stack.broker_url, backend=f"bridge+{kept}")
    bridge.install(app)
    yield app
    app.close()


@pytest.fixture
def plain(kept: str, bare_stack: Stack) -> Iterator[Any]:
    """An application that knows nothing of the bridge and reads the same backend."""
    app = Celery("plain", broker=bare_stack.broker_url, backend=kept, set_as_current=False)
    yield app
    app.close()


def test_results_and_errors_are_in_both(app: Any, plain: Any, bare_stack: Stack) -> None:
    good, bad = app.send_task("chords.give", ([1, "two"],)), app.send_task("chords.fail", ("both",))
    assert good.get(timeout=PATIENCE) == plain.AsyncResult(good.id).get(timeout=PATIENCE) == [1, "two"]
    for result in (bad, plain.AsyncResult(bad.id)):
        with pytest.raises(ValueError, match="both"):
            result.get(timeout=PATIENCE)
        assert "in fail" in result.traceback
    assert bare_stack.wait(good.id)["result"] == [1, "two"]
    assert bare_stack.wait(bad.id)["error"]["message"] == "both"


def test_a_result_that_its_backend_has_lost_is_on_the_row_alone(app: Any, plain: Any, bare_stack: Stack) -> None:
    result = app.send_task("chords.give", ([1, "two"],))
    assert result.get(timeout=PATIENCE) == [1, "two"]
    ended = bare_stack.wait(result.id)
    plain.AsyncResult(result.id).forget()  # as by an expiry, an eviction, FLUSHALL
    assert app.AsyncResult(result.id).state == plain.AsyncResult(result.id).state == "PENDING"
    assert bare_stack.job(result.id) == ended
    assert (ended["status"], ended["result"], ended["attempts"]) == ("succeeded", [1, "two"], 1)


def test_chords_are_joined_by_the_backend_itself(app: Any, bare_stack: Stack) -> None:
    parts = [app.signature("chords.give", (number,)) for number in range(3)]
    assert chord(parts, app.signature("chords.collect"))().get(timeout=PATIENCE) == [0, 1, 2]
    failing = [app.signature("chords.give", (1,)), app.signature("chords.fail", ("part",))]
    result = chord(failing, app.signature("chords.collect"))()
    with pytest.raises(ChordError, match="part"):
        result.get(timeout=PATIENCE, follow_parents=False)
    assert bare_stack.sql.execute("select count(*) from bridge.chord").fetchone() == (0,)
    assert bare_stack.wait(result.id)["status"] == "cancelled"


def test_chains_groups_and_saved_groups_work(app: Any) -> None:
    steps = chain(app.signature("chords.give", (1,)), app.signature("chords.more", (2,))).apply_async()
    assert (steps.get(timeout=PATIENCE), steps.parent.get(timeout=PATIENCE)) == (3, 1)
    wait_until(lambda: [child.id for child in app.AsyncResult(steps.parent.id).children or []] == [steps.id], PATIENCE)
    several = group(app.signature("chords.give", (number,)) for number in range(3)).apply_async()
    assert several.get(timeout=PATIENCE) == [0, 1, 2]
    several.save()
    assert GroupResult.restore(several.id, app=app) == several
    several.delete()
    assert GroupResult.restore(several.id, app=app) is None


def test_forgetting_and_pickling_are_the_backends(app: Any, plain: Any, bare_stack: Stack) -> None:
    result = app.send_task("chords.give", (7,))
    assert result.get(timeout=PATIENCE) == 7
    copy: AsyncResult = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert (copy.id, copy.get(timeout=PATIENCE)) == (result.id, 7)
    result.forget()
    assert plain.AsyncResult(result.id).state == app.AsyncResult(result.id).state == "PENDING"
    assert bare_stack.wait(result.id)["result"] == 7


@pytest.mark.parametrize("end", ["select bridge.cancel(%s)", "update bridge.job set expires_at = now() where id = %s"])
def test_who_waits_hears_of_an_end_that_no_worker_stores(app: Any, plain: Any, bare_stack: Stack, end: str) -> None:
    result, other = app.send_task("chords.give", (1,), countdown=3600), app.send_task("chords.give", (2,), countdown=3600)
    assert (result.state, plain.AsyncResult(result.id).state) == ("PENDING", "PENDING")
    for one in (result, other):
        bare_stack.sql.execute(end.encode(), (job_id(one.id),))
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    wait_until(lambda: other.state == "REVOKED", PATIENCE)
    assert plain.AsyncResult(result.id).state == plain.AsyncResult(other.id).state == "REVOKED"


def test_a_run_beyond_its_deadline_has_failed_in_both(app: Any, plain: Any, bare_stack: Stack) -> None:
    result = app.send_task("chords.sleep", (600,), bridge={"deadline": 3600})
    wait_until(lambda: bare_stack.job(result.id)["status"] == "running", PATIENCE)
    bare_stack.sql.execute("update bridge.job set deadline = clock_timestamp() where id = %s", (result.id,))
    with pytest.raises(bridge.DeadlineExceeded):
        result.get(timeout=PATIENCE)
    wait_until(lambda: plain.AsyncResult(result.id).state == "FAILURE", PATIENCE)
    assert isinstance(plain.AsyncResult(result.id).result, bridge.DeadlineExceeded)
    assert bare_stack.wait(result.id)["error"]["type"] == "DeadlineExceeded"


def test_a_group_hears_of_it_too(app: Any, bare_stack: Stack) -> None:
    several = group(app.signature("chords.give", (number,), countdown=3600 * number) for number in range(2)).apply_async()
    bare_stack.sql.execute("select bridge.cancel(%s)", (job_id(several.results[1].id),))
    with pytest.raises(TaskRevokedError):
        several.get(timeout=PATIENCE)


def test_a_call_does_not_ask_the_result_store(app: Any, bare_stack: Stack) -> None:
    result = app.send_task("chords.give", (1,), countdown=600)
    with redis.Redis.from_url(bare_stack.broker_url) as client:  # Celery's own Redis backend subscribes with each call
        assert client.pubsub_numsub(f"celery-task-meta-{result.id}") == [(f"celery-task-meta-{result.id}".encode(), 0)]
