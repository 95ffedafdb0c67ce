"""`bridge bench` does its work, counts it and says so; nothing here looks at speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import inf
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import ROOT, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.local.broker import RedisServer

SIDES = {
    "drain": ["celery", "bridge"],
    "e2e": ["celery", "bridge"],
    "latency": ["celery", "bridge"],
    "enqueue": ["celery", "bridge, delay()", "bridge, single", "bridge, one transaction", "bridge, bulk"],
    "memory": ["bridge"],
    "gate": ["plain", "gated"],
    "claim": ["alone", "beside"],
    "urgent": ["bridge"],
}
JOBS = {"drain": 300, "e2e": 200, "latency": 20, "enqueue": 100, "memory": 2000, "gate": 200, "claim": 1000, "urgent": 3000}


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", "bench", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("scenario", list(SIDES))
def test_a_scenario_counts_every_job_and_says_what_it_measured(scenario: str, dsn: str, redis_url: str) -> None:
    servers = ["--database-url", dsn, "--broker-url", redis_url]
    done = bench(scenario, "--rounds", "1", "--jobs", str(JOBS[scenario]), "--json", *servers)
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["scenarios"]
    (samples,) = said["rounds"]
    assert [sample["side"] for sample in samples] == SIDES[scenario]
    # Of the rows in front of the drainer, a tenth goes through, and what it has published meanwhile.
    expected = {"memory": JOBS[scenario] // 10, "urgent": 20}.get(scenario, JOBS[scenario])
    assert all(sample["jobs"] >= expected for sample in samples)
    # On a busy machine a job may begin before its producer has read the clock: such a latency is below nothing.
    least = -inf if scenario == "latency" else 0
    assert all(least < next(iter(sample["figures"].values())) < inf for sample in samples)


def test_a_run_on_servers_of_its_own_writes_where_its_figures_come_from(redis_server: RedisServer, tmp_path: Path) -> None:
    del redis_server  # asked for so that the test is skipped where there is no Redis
    file = tmp_path / "figures.json"
    done = bench("drain", "--rounds", "1", "--jobs", "100", "--output", str(file))
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(file.read_text())
    assert said["servers"]["own"]
    assert said["servers"]["postgres"]["fsync"] == "on"
    assert said["machine"]["cores"] >= 1
    assert {"celery", "kombu", "redis", "redis_server", "postgres", "python", "psycopg"} <= set(said["versions"])
    assert "drain" in done.stdout


def test_a_database_that_holds_jobs_is_left_alone(dsn: str, redis_url: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("select bridge.enqueue('mail.send')")
    done = bench("drain", "--database-url", dsn, "--broker-url", redis_url)
    assert done.returncode == 1
    assert "holds jobs" in done.stderr
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from bridge.job").fetchone() == (1,)


def test_a_broker_that_holds_keys_is_left_alone(dsn: str, redis_server: RedisServer) -> None:
    redis_server.client().set("somebody", "else's")
    done = bench("drain", "--database-url", dsn, "--broker-url", redis_server.url)
    assert done.returncode == 1
    assert "holds keys" in done.stderr
    assert redis_server.client().get("somebody") == b"else's"


def test_the_settings_of_a_given_database_are_as_before(dsn: str, redis_url: str) -> None:
    done = bench("drain", "--rounds", "1", "--jobs", "50", "--database-url", dsn, "--broker-url", redis_url)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select bridge.setting('window')").fetchone() == (500,)


def test_a_run_that_is_ended_early_leaves_nothing_behind(redis_server: RedisServer, server_folder: Path) -> None:
    del redis_server  # asked for so that the test is skipped where there is no Redis
    folder = server_folder / "disk"
    folder.mkdir(mode=0o711)
    command = [sys.executable, "-m", "bridge", "bench", "e2e", "--jobs", "20000"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(folder.glob("bench-*/worker.log")), 90.0, "a worker that starts")
        process.terminate()
        assert process.wait(60.0) == 1
    finally:
        process.kill()
        process.wait()
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == []
