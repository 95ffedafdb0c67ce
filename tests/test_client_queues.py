"""Pausing, resuming and draining queues, and circuit breakers, from Python and from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import fix_client
import pytest
from click.testing import CliRunner, Result
from fix_servers import ROOT, wait_until

import bridge
from bridge.cli import main
from bridge.errors import InvalidArgumentError, NotFoundError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_sql import Session

pytestmark = pytest.mark.usefixtures("ours")
command, answer = partial(fix_client.command, "queues"), partial(fix_client.answer, "queues")
PAUSES = "select kind, name, pause, reason from bridge.pauses order by 1, 2"


def test_queues_are_paused_and_resumed_from_python_in_the_callers_transaction(db: Session) -> None:
    db.enqueue()
    db.publish()
    with db.connection.transaction(force_rollback=True):
        assert bridge.pause("celery", connection=db.connection) == 0
    assert db.rows(PAUSES) == []
    assert bridge.pause("celery", hard=True, reason="a fire") == 1
    bridge.pause(everything=True)
    assert db.rows(PAUSES) == [("everything", "", "soft", None), ("queue", "celery", "hard", "a fire")]
    assert [(pause["kind"], pause["name"], pause["pause"]) for pause in bridge.pauses()] == [row[:3] for row in db.rows(PAUSES)]
    assert (bridge.resume("celery"), bridge.resume(everything=True), bridge.resume("celery")) == (True, True, False)
    with pytest.raises(InvalidArgumentError, match="give one of them"):
        bridge.pause()
    bridge.set_window("celery", 3)
    assert db.rows('select "window" from bridge.queue') == [(3,)]


def test_a_drain_from_python_waits_until_nothing_is_left_and_tells_how_far_it_is(db: Session) -> None:
    db.enqueue()
    db.enqueue()
    held = db.run(limit=1)
    seen: list[int] = []

    def finish(left: list[Any]) -> None:
        seen.append(sum(load.total for load in left))
        if len(seen) == 2:
            db.finish(*held)

    bridge.drain("celery", timeout=30, progress=finish)
    assert seen[:2] == [1, 1]
    assert seen[-1] == 0
    assert db.rows(PAUSES) == [("queue", "celery", "soft", "drained")]


def test_a_drain_that_takes_too_long_says_what_is_left_and_leaves_the_pause(db: Session) -> None:
    db.enqueue()
    db.run()
    with pytest.raises(WaitTimeoutError, match=r"celery \(0 published, 1 running\): they stay paused"):
        bridge.drain(everything=True, timeout=0.1)
    assert db.rows(PAUSES) == [("everything", "", "soft", "drained")]
    with pytest.raises(InvalidArgumentError, match="name queues, or say everything"):
        bridge.drain()


def test_the_command_line_pauses_lists_and_resumes(db: Session) -> None:
    db.enqueue()
    db.publish()
    assert command("pause", "celery", "mail", "--hard", "--reason", "a fire").stdout == (
        "queue celery paused taken_back=1\nqueue mail paused taken_back=0\n"
    )
    assert answer("pauses")[0] | {"paused_at": "", "paused_by": ""} == {
        "kind": "queue", "name": "celery", "pause": "hard", "paused_at": "", "paused_by": "", "reason": "a fire",
    }  # fmt: skip
    header, celery, *_ = command("list").stdout.splitlines()
    assert dict(zip(header.split("\t"), celery.split("\t"), strict=True)) | {"oldest_queued_at": ""} == {
        "queue": "celery", "pause": "hard", "window": "", "blocked": "0", "scheduled": "0", "queued": "1", "published": "0",
        "running": "0", "succeeded_last_hour": "0", "failed_last_hour": "0", "oldest_queued_at": "",
    }  # fmt: skip
    assert [row["outcome"] for row in answer("resume", "celery", "reports")] == ["resumed", "was not paused"]
    assert answer("window", "celery", 7)[0]["window"] == 7
    assert [row["window"] for row in answer("list") if row["queue"] == "celery"] == [7]
    assert command("window", "celery", "default").exit_code == 0
    assert [row["window"] for row in answer("list") if row["queue"] == "celery"] == [None]


@pytest.mark.parametrize("words", [("pause",), ("pause", "mail", "--all"), ("resume", "--all", "--task", "t"), ("window", "mail", "-1")])
def test_wrong_use_ends_with_two_and_changes_nothing(db: Session, words: tuple[str, ...]) -> None:
    assert command(*words).exit_code == 2
    assert db.rows(PAUSES) == []


def test_the_command_line_drains_and_answers_by_its_exit_code(db: Session) -> None:
    db.enqueue()
    db.enqueue()
    held = db.run(limit=1)
    db.publish()
    late = command("drain", "celery", "--timeout", "0.1")
    assert late.exit_code == 1
    assert "not drained, the time is over: celery: 1 published, 1 running" in late.stdout
    assert "the pause stays; bridge queues resume celery ends it" in late.stderr
    ended = threading.Timer(0.5, lambda: db.finish(*held))
    ended.start()
    done = command("drain", "celery", "--hard", "--timeout", "30")
    ended.join()
    assert (done.exit_code, done.stdout[:10]) == (0, "drained in"), done.output
    assert [line for line in done.stderr.splitlines() if line.startswith("draining")] == [
        line for line in done.stderr.splitlines() if line
    ], "a line for each change"
    assert db.rows(PAUSES) == [("queue", "celery", "hard", "drained")]
    assert answer("drain", "celery", "--resume") == [{"kind": "queue", "name": "celery", "outcome": "resumed"}]
    assert answer("drain", "--all")["drained"]
    assert db.rows(PAUSES) == [("everything", "", "soft", "drained")]


def test_a_drain_that_is_interrupted_leaves_the_pause_and_says_so(db: Session, start: Callable[..., subprocess.Popen[str]]) -> None:
    db.enqueue()
    db.run()
    process = start("drain", "--all", "--json")
    wait_until(lambda: db.rows(PAUSES), 30, "the pause")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("draining, celery: 0 published, 1 running (the oldest for ")
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(said)["drained"] is False
    assert complaint == "the pause stays; bridge queues resume --all ends it\n"
    assert db.rows(PAUSES) == [("everything", "", "soft", "drained")]


def test_breakers_are_made_shown_reset_and_removed_from_python(db: Session) -> None:
    assert bridge.set_breaker(task="a.task", minimum=1, within=60, cooldown=30, probes=2) == "created"
    (row,) = bridge.breakers()
    assert (row["kind"], row["name"], row["state"], row["within"].total_seconds()) == ("task", "a.task", "closed", 60)
    db.enqueue(max_attempts=1)
    db.fail(*db.run())
    db.tick()
    with db.connection.transaction(force_rollback=True):
        assert bridge.reset_breaker(task="a.task", connection=db.connection) == "open"
    assert bridge.breakers()[0]["state"] == "open"
    assert bridge.reset_breaker(task="a.task") == "open"
    assert (bridge.remove_breaker(task="a.task"), bridge.remove_breaker(task="a.task")) == (True, False)
    with pytest.raises(NotFoundError, match="breaker of queue a does not exist"):
        bridge.reset_breaker("a")
    with pytest.raises(InvalidArgumentError, match="ratio is 2"):
        bridge.set_breaker("a", ratio=2)


def test_breakers_are_made_shown_reset_and_removed_from_the_command_line(db: Session) -> None:
    def breakers(*words: str) -> Result:
        return CliRunner().invoke(main, ["breakers", *words])

    assert breakers("set", "--queue", "celery", "--minimum", "1", "--within", "1m").stdout == "queue celery created\n"
    db.enqueue(max_attempts=1)
    db.fail(*db.run())
    db.tick()
    header, line = breakers("list").stdout.splitlines()
    shown = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert {"kind": "queue", "name": "celery", "state": "open", "ratio": "0.5", "within": "1 min 0 s"}.items() <= shown.items()
    assert json.loads(breakers("list", "--json").stdout)[0]["within"] == 60
    assert breakers("reset", "--queue", "celery").stdout == "queue celery was open\n"
    assert [row["state"] for row in json.loads(breakers("log", "--json").stdout)] == ["closed", "open"]
    assert json.loads(breakers("remove", "-Q", "celery", "--json").stdout) == {"queue": "celery", "outcome": "removed"}
    assert breakers("set").exit_code == 2
    assert breakers("reset", "--task", "t").exit_code == 1


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `bridge queues` as a process."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bridge", "queues", *words]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
