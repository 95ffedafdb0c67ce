"""`bridge jobs enqueue` makes one job or a file of them, by the argument names of `bridge.enqueue`."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fix_client import command

import bridge
from bridge.cli.enqueue import enqueue_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from fix_sql import Session


@pytest.fixture
def enqueue(ours: None) -> Callable[..., Result]:  # noqa: ARG001
    """Runs `bridge jobs enqueue` with these words."""
    return partial(command, "jobs", "enqueue")


def lines(*jobs: Any) -> str:
    return "".join(json.dumps(job) + "\n" for job in jobs)


def test_every_argument_of_enqueue_is_an_option_of_the_same_name() -> None:
    options = {parameter.name for parameter in enqueue_command.params}
    assert set(inspect.signature(bridge.enqueue).parameters) - {"connection"} <= options


def test_one_job_is_made_of_the_words_of_a_command(enqueue: Callable[..., Result], db: Session) -> None:
    parent = db.enqueue("a.parent")
    words = ("mail.send", "--args", "[1]", "--kwargs", '{"a": 2}', "--queue", "mail", "--priority", 5, "--run-at", "2100-01-31T06:00+01:00")
    done = enqueue(*words, "--backoff", "[1, 5]", "--depends-on", parent, "--timeout", "15m", "--unique-key", "k", "--headers", '{"h": 1}')
    assert done.exit_code == 0, done.output
    found = (
        "select id::text, args, kwargs, queue, priority, extract(year from run_at)::int, status from bridge.jobs where task = 'mail.send'"
    )
    assert db.rows(found) == [(done.stdout.strip(), [1], {"a": 2}, "mail", 5, 2100, "blocked")]
    assert json.loads(enqueue("mail.send", "--unique-key", "k", "--json").stdout) == [done.stdout.strip()]


def test_a_file_of_jobs_becomes_jobs_all_at_once(enqueue: Callable[..., Result], db: Session, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text(
        lines(*({"task": "mail.send", "args": [number]} for number in range(1500))) + "\n" + lines({"task": "b", "depends_on": [0]})
    )
    done = enqueue("--many", file)
    assert done.exit_code == 0, done.output
    assert len(done.stdout.split()) == 1501
    assert "enqueue: 1501 jobs" in done.stderr
    assert db.one("select count(*) from bridge.jobs") == 1501
    assert json.loads(enqueue("--many", "-", "--json", text=lines({"task": "c", "delay": 60})).stdout) == [
        str(db.one("select id from bridge.jobs where task = 'c' and status = 'scheduled'"))
    ]


@pytest.mark.parametrize(
    ("words", "text", "status", "said"),
    [
        ((), None, 2, "name a task and its options, or give --many"),
        (("mail.send", "--many", "-"), "", 2, "name a task and its options, or give --many"),
        (("mail.send", "--args", "{}"), None, 2, "is no json array"),
        (("mail.send", "--delay", "soon"), None, 2, "is no duration"),
        (("mail.send", "--priority", 11), None, 1, "error: priority is 11: give 0 to 9"),
        (("--many", "-"), lines({"task": "a"}, {"task": "b", "priority": 11}), 1, "error: jobs[1]: priority is 11: give 0 to 9"),
        (("--many", "-"), '{"task": "a"}\n{', 1, "error: line 2 of <stdin> is no JSON"),
        (("--many", "-"), "[]\n", 1, "error: line 1 of <stdin> is a JSON list"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_made(
    enqueue: Callable[..., Result], db: Session, words: tuple[Any, ...], text: str | None, status: int, said: str
) -> None:
    done = enqueue(*words, text=text)
    assert (done.exit_code, said in done.stderr) == (status, True), done.stderr
    assert db.one("select count(*) from bridge.jobs") == 0
