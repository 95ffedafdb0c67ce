"""Traces go from the call that makes a job through the drainer to its runs: real processes, a real SDK, spans in a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import ROOT, missing, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fix_stack import Stack

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traces:
    """The spans that processes of a stack have written, and callers that write theirs to the same file."""

    def __init__(self, stack: Stack, file: Path) -> None:
        self.stack = stack
        self.file = file
        path = os.pathsep.join(str(ROOT / folder) for folder in ("tests/traced", ".", "tests"))
        self.env = {"TRACE_FILE": str(file), "PYTHONPATH": path}

    def call(self, code: str, **env: str) -> str:
        """What a traced program prints that imports the application."""
        ours = {"BRIDGE_DATABASE_URL": self.stack.dsn, "BRIDGE_BROKER_URL": self.stack.broker_url, **self.env, **env}
        command = [sys.executable, "-c", f"import bridge\nfrom apps import traced\n{code}"]
        done = subprocess.run(command, env={**os.environ, **ours}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def spans(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def of_trace(self, trace: str, number: int) -> list[dict[str, Any]]:
        """The spans of a trace, in the order of their start, once there are so many."""

        def there() -> list[dict[str, Any]]:
            found = [span for span in self.spans() if span["context"]["trace_id"] == trace]
            return sorted(found, key=lambda span: span["start_time"]) if len(found) >= number else []

        return wait_until(there, 30.0, f"{number} spans of {trace}")

    def of_job(self, identity: str, name: str, number: int = 1) -> list[dict[str, Any]]:
        def there() -> list[dict[str, Any]]:
            found = [one for one in self.spans() if one["name"] == name and one["attributes"].get("bridge.job.id") == identity]
            return found if len(found) >= number else []

        return wait_until(there, 30.0, f"{number} spans {name} of {identity}")


def names(spans: list[dict[str, Any]]) -> list[str]:
    return [span["name"] for span in spans]


@pytest.fixture(scope="module")
def traces(bare_stack: Stack) -> Traces:
    """A traced drainer and worker."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        missing("opentelemetry.sdk", "pip install opentelemetry-sdk")
    traces = Traces(bare_stack, bare_stack.folder / "spans.jsonl")
    drain = bare_stack.start("drainer", "-m", "bridge", "drain", env=traces.env)
    bare_stack.start_worker("apps.traced", env=traces.env)
    assert drain.alive
    return traces


def test_one_trace_goes_from_the_enqueue_through_the_drainer_to_the_run(traces: Traces) -> None:
    identity = traces.call("print(bridge.enqueue('traced.note', ['a'], queue='celery'))")
    run = traces.of_job(identity, "run traced.note")[0]
    enqueue, publish, last = traces.of_trace(run["context"]["trace_id"], 3)
    assert names([enqueue, publish, last]) == ["enqueue traced.note", "publish celery", "run traced.note"]
    assert [span["kind"].removeprefix("SpanKind.") for span in (enqueue, publish, last)] == ["PRODUCER", "CLIENT", "CONSUMER"]
    assert enqueue["parent_id"] is None
    assert publish["parent_id"] == last["parent_id"] == enqueue["context"]["span_id"]
    assert publish["links"][0]["context"]["span_id"] == enqueue["context"]["span_id"]
    said = last["attributes"]
    assert (said["messaging.system"], said["messaging.destination.name"], said["messaging.operation.type"]) == (
        "celery",
        "celery",
        "process",
    )
    assert (said["messaging.message.id"], said["bridge.attempt"], said["bridge.outcome"]) == (identity, 1, "succeeded")
    assert said["bridge.run.id"] == str(
        traces.stack.sql.execute("select run from bridge.attempts where id = %s", (identity,)).fetchone()[0]
    )  # type: ignore[index]


def test_a_job_from_sql_goes_on_with_the_trace_of_its_headers_and_so_do_its_retries(traces: Traces) -> None:
    headers = json.dumps({"traceparent": f"00-{TRACE}-{PARENT}-01"})
    identity = str(traces.stack.enqueue("traced.fail", 2, headers=headers, backoff="0"))
    assert traces.stack.wait(identity)["status"] == "succeeded"
    runs = sorted(traces.of_job(identity, "run traced.fail", 3), key=lambda span: span["start_time"])
    assert {span["context"]["trace_id"] for span in runs} == {f"0x{TRACE}"}
    assert {span["parent_id"] for span in runs} == {f"0x{PARENT}"}
    assert [span["attributes"]["bridge.attempt"] for span in runs] == [1, 2, 3]
    assert [span["status"]["status_code"] for span in runs] == ["ERROR", "ERROR", "UNSET"]
    assert runs[0]["attributes"]["error.type"] == "ValueError"


def test_a_celery_call_is_traced_with_its_retries(traces: Traces) -> None:
    identity = traces.call("print(traced.again.delay().id)")
    assert traces.stack.wait(identity)["status"] == "succeeded"
    runs = sorted(traces.of_job(identity, "run traced.again", 2), key=lambda span: span["start_time"])
    assert [span["attributes"]["bridge.outcome"] for span in runs] == ["retried", "succeeded"]
    spans = traces.of_trace(runs[0]["context"]["trace_id"], 5)
    assert names(spans)[0] == "enqueue traced.again"
    assert {span["context"]["trace_id"] for span in runs} == {spans[0]["context"]["trace_id"]}


def test_a_header_that_names_no_trace_is_replaced_and_breaks_nothing(traces: Traces) -> None:
    identity = traces.call("print(bridge.enqueue('traced.note', ['odd'], headers={'traceparent': 5, 'x': [1]}))")
    run = traces.of_job(identity, "run traced.note")[0]
    assert names(traces.of_trace(run["context"]["trace_id"], 3))[0] == "enqueue traced.note"
    odd = str(traces.stack.enqueue("traced.note", "odd", headers='{"traceparent": 5, "tracestate": "x"}'))
    assert traces.of_job(odd, "run traced.note")[0]["parent_id"] is None


def test_a_shipment_of_several_traces_is_linked_to_each(traces: Traces) -> None:
    made = [uuid.uuid4().hex for _ in range(3)]
    parents = [f"00-{trace}-{PARENT[:-1]}{at}-01" for at, trace in enumerate(made)]
    with traces.stack.sql.transaction():
        for parent in parents:
            traces.stack.enqueue("traced.note", "b", headers=json.dumps({"traceparent": parent}))

    def linked() -> list[set[str]]:
        publishes = [span for span in traces.spans() if span["name"] == "publish celery"]
        return [found for span in publishes if len(found := {link["context"]["trace_id"] for link in span["links"]}) == 3]

    assert wait_until(linked, 30.0, "a publish span with three links")[0] == {f"0x{trace}" for trace in made}


def test_jobs_of_one_bulk_call_share_its_span(traces: Traces) -> None:
    code = "print(*bridge.enqueue_many([{'task': 'traced.note', 'args': [n]} for n in range(3)]))"
    identities = traces.call(code).split()
    runs = [traces.of_job(identity, "run traced.note")[0] for identity in identities]
    bulk = next(span for span in traces.spans() if span["name"] == "enqueue many")
    assert bulk["attributes"]["messaging.batch.message_count"] == 3
    assert {run["parent_id"] for run in runs} == {bulk["context"]["span_id"]}
    flow = "{'a': {'task': 'traced.note', 'args': [1]}, 'b': {'task': 'traced.note', 'args': [2], 'depends_on': ['a']}}"
    identities = traces.call(f"print(*bridge.enqueue_flow({flow}).values())").split()
    runs = [traces.of_job(identity, "run traced.note")[0] for identity in identities]
    whole = next(span for span in traces.spans() if span["name"] == "enqueue flow")
    assert {run["parent_id"] for run in runs} == {whole["context"]["span_id"]}


def test_lines_that_a_task_logs_name_its_job_its_run_and_its_trace(traces: Traces) -> None:
    identity = traces.call("print(bridge.enqueue('traced.note', ['lines']))")
    run = traces.of_job(identity, "run traced.note")[0]
    log = traces.stack.processes[1]
    line = wait_until(lambda: re.search(r"\[job=(\S+) run=(\S+) trace=(\S+)\] noted lines", log.log_text()), 20.0, "its line")
    assert line.groups() == (identity, run["attributes"]["bridge.run.id"], run["context"]["trace_id"].removeprefix("0x"))


def test_beside_the_instrumentation_of_celery_no_span_is_doubled(traces: Traces) -> None:
    both = {"TRACE_CELERY": "1"}
    traces.stack.processes[1].stop()
    traces.stack.start_worker("apps.traced", env={**traces.env, **both})
    identity = traces.call("print(traced.note.delay('c').id)", **both)
    run = traces.of_job(identity, "run/traced.note")[0]
    spans = traces.of_trace(run["context"]["trace_id"], 3)
    assert names(spans) == ["apply_async/traced.note", "publish celery", "run/traced.note"]
    assert run["attributes"]["bridge.attempt"] == 1
    assert run["parent_id"] == spans[0]["context"]["span_id"]
