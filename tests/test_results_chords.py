"""Chords with rows alone: joined once, by whoever sees that all parts have ended, with no task that polls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from apps.chords import app as chords
from apps.chords import aside, collect, fail, flaky, gather_and_mark, give, grow, more, note, quiet, stand_in
from celery import chain, chord, group
from celery.exceptions import ChordError
from fix_servers import wait_until
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_stack import Stack

PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def started(bare_stack: Stack) -> Stack:
    bare_stack.start_drainer()
    bare_stack.start_worker("apps.chords", env={"C_FORCE_ROOT": "1"})
    return bare_stack


@pytest.fixture
def stack(started: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", started.dsn)
    monkeypatch.setattr(chords.conf, "broker_url", started.broker_url)
    chords.bridge.__dict__.pop("settings", None)
    chords.bridge.__dict__.pop("connections", None)
    yield started
    # Joined or failed, nothing is left; and no chord was ever polled for.
    wait_until(lambda: started.sql.execute("select count(*) from bridge.chord").fetchone() == (0,), PATIENCE, "no chord is left")
    assert started.sql.execute("select count(*) from bridge.chord_part").fetchone() == (0,)
    assert started.sql.execute("select count(*) from bridge.jobs where task = 'celery.chord_unlock'").fetchone() == (0,)


@pytest.mark.versions
@pytest.mark.usefixtures("stack")
def test_a_body_gets_what_the_parts_returned_in_their_order() -> None:
    result = chord((give.s(number) for number in range(12)), collect.s())()
    assert result.get(timeout=PATIENCE) == list(range(12))
    assert result.parent.get(timeout=PATIENCE) == list(range(12))


@pytest.mark.versions
@pytest.mark.usefixtures("stack")
def test_headers_and_bodies_may_be_any_canvas() -> None:
    wanted: list[tuple[Any, Any]] = [
        (chord([chain(give.s(1), more.s(1)), chain(give.s(2), more.s(2))], collect.s()), [2, 4]),
        (chord([group(give.s(1), give.s(2)), give.s(3)], collect.s()), [2, 1, 3]),  # as Celery flattens groups
        (chord([chain(give.s(1), group(more.s(1), more.s(2))), give.s(9)], collect.s()), [[2, 3], 9]),
        (chord([chord([give.s(1), give.s(2)], collect.s()), chord([give.s(3)], collect.s())], collect.s()), [[1, 2], [3]]),
        (chord([give.s(1), give.s(2)], chain(collect.s(), collect.s())), [1, 2]),
        (chord([give.s(1)], group(collect.s(), collect.s())), [[1], [1]]),
        (chord([give.s(1), give.s(2)], chord([collect.s(), collect.s()], collect.s())), [[1, 2], [1, 2]]),
        (chain(give.s(5), group(more.s(1), more.s(2)), collect.s(), group(collect.s(), collect.s()), collect.s()), [[6, 7], [6, 7]]),
        (chord([], collect.s()), []),
        (chord([quiet.s(1), aside.s(2), flaky.s(3)], collect.s()), [1, 2, 3]),
        (chord([give.s((1, 2)), give.s(3)], collect.s(), serializer="pickle"), [[1, 2], 3]),
    ]
    results = [(canvas.apply_async(), value) for canvas, value in wanted]
    assert [result.get(timeout=PATIENCE) for result, _ in results] == [value for _, value in results]


@pytest.mark.versions
@pytest.mark.usefixtures("stack")
def test_a_part_may_add_parts() -> None:
    assert sorted(chord([grow.s(3), give.s(9)], collect.s())().get(timeout=PATIENCE)) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("header", [
    [give.s(1), fail.s("part")], [fail.s("part"), give.s(2)], [chain(fail.s("part"), more.s(1)), give.s(1)],
    [chain(give.s(1), fail.si("part"), more.s(1), more.s(2)), give.s(1)],
])  # fmt: skip
def test_a_part_that_fails_fails_the_body_in_celerys_words(stack: Stack, header: list[Any], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    result = chord(header, collect.s().on_error(note.s(str(marks))))()
    with pytest.raises(ChordError, match=r"Dependency [0-9a-f-]{36} raised ValueError\('part'\)"):
        result.get(timeout=PATIENCE, follow_parents=False)
    wait_until(marks.exists, PATIENCE, "the errback of the body")
    assert stack.wait(result.id)["status"] == "cancelled"


@pytest.mark.usefixtures("stack")
def test_a_failure_goes_through_chords_in_chords() -> None:
    inner = chord([give.s(1), fail.s("deep")], collect.s())
    with pytest.raises(ChordError, match="deep"):
        chord([inner, give.s(2)], collect.s())().get(timeout=PATIENCE, follow_parents=False)


def test_a_failed_part_that_is_redriven_in_time_saves_its_chord(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    waits = give.s(2).set(countdown=600)
    result = chord([gather_and_mark.s(1, str(tmp_path / "missing" / "file")), waits], gather_and_mark.s(str(marks)))()
    first, second = result.parent.results
    assert stack.wait(first.id)["status"] == "failed"
    (tmp_path / "missing").mkdir()
    stack.sql.execute("select bridge.retry(%s), bridge.retry(%s)", (first.id, second.id))
    assert result.get(timeout=PATIENCE, follow_parents=False) == [1, 2]
    assert marks.read_text() == "body\n"


def test_a_cancelled_part_fails_the_body(stack: Stack) -> None:
    result = chord([give.s(1), give.s(2).set(countdown=600)], collect.s())()
    stack.wait(result.parent[0].id)
    stack.sql.execute("select bridge.cancel(%s)", (result.parent[1].id,))
    with pytest.raises(ChordError, match="raised TaskRevokedError"):
        result.get(timeout=PATIENCE, follow_parents=False)


def test_a_chord_is_joined_once_when_its_last_worker_died_before_it_could_look(stack: Stack, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    result = chord([give.s(1).set(queue="nobody"), give.s(2).set(queue="nobody")], gather_and_mark.s(str(marks)))()
    # A worker that starts and ends both and is gone: what it would have done next, nobody does.
    held = "from bridge.inflight i join bridge.job j using (seq) where j.queue = 'nobody'"
    worker = f"select bridge.start(i.seq, i.token, gen_random_uuid(), 1) {held}"
    wait_until(lambda: len(stack.sql.execute(worker.encode()).fetchall()) == 2, PATIENCE, "both parts are published")
    finish = f"select bridge.finish(i.seq, i.run, 'succeeded', j.args->0) {held}"
    assert [row[0] for row in stack.sql.execute(finish.encode())] == [True, True]
    assert result.get(timeout=PATIENCE) == [1, 2]
    assert marks.read_text() == "body\n"
    assert stack.sql.execute("select count(*) from bridge.jobs where task = 'bridge.join_chord'").fetchone() != (0,)


@pytest.mark.usefixtures("stack")
def test_a_chord_from_a_task_and_one_that_is_applied_again_work() -> None:
    identity = chords.send_task("chords.spawn", ([1, 2],)).get(timeout=PATIENCE)
    assert chords.AsyncResult(identity).get(timeout=PATIENCE) == [1, 2]
    canvas = chord([give.s(1), give.s(2)], collect.s())
    canvas.freeze()
    assert [canvas.apply_async().get(timeout=PATIENCE) for _ in range(2)] == [[1, 2], [1, 2]]


def test_a_task_that_a_canvas_replaces_ends_with_that_canvas(stack: Stack) -> None:
    results = [stand_in.delay(kind) for kind in ("chain", "group", "chord")]
    assert [result.get(timeout=PATIENCE) for result in results] == [2, [1, 2], [1, 2]]
    assert chord([stand_in.s("chain"), stand_in.s("chord"), give.s(3)], collect.s())().get(timeout=PATIENCE) == [2, [1, 2], 3]
    failing = stand_in.delay("failing")
    with pytest.raises(ValueError, match="inside"):
        failing.get(timeout=PATIENCE)
    assert stack.wait(results[0].id)["task"] == "chords.more"
    assert_sound(stack.dsn)
