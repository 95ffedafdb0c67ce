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
from fix_effort import EFFORT
from fix_servers import ROOT, missing, wait_until

from bridge.local.pooler import HOW_TO_GET_IT, find_pgbouncer

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.local.broker import RedisServer

# As few jobs, rows and processes as there can be: what matters is that every step of a scenario happens.
TINY = ["--rounds", "1", "--no-warm-up", "--jobs", "40", "--rows", "1000", "--hold", "0", "--clients", "2", "--rate", "50"]
TINY += ["--concurrency", "1", "--producers", "2", "--peer", str(ROOT / "tests/apps/tiny_peer.py")]
CONTESTANTS = ["celery", "celery, db results", "bridge", "tiny"]
# In the gate, one side of each kind.
SOME = ["celery, db results", "bridge", "tiny"]
MADE = ["celery, db results", "bridge, delay() in a transaction", "bridge, bulk", "tiny, bulk"]
# What each says: its sides, and some of its figures.
SAID = {
    "enqueue": (MADE, {"jobs_per_s"}),
    "drain": (["bridge"], {"jobs_per_s"}),
    "e2e": (SOME, {"jobs_per_s"}),
    "split": (["bridge"], {"enqueue_us", "claim_us", "start_us", "finish_us", "drainer_us", "all_us"}),
    "clients": (["bridge"], {"jobs_per_s", "p50_ms", "p99_ms", "lock_waiters"}),
    "lists": (["bridge"], {f"{name}_{unit}" for name in ("last_failed", "last_hour", "page") for unit in ("ms", "buffers")}),
}
ALL_WAYS = [
    "bridge, delay()", "bridge, delay() in a transaction", "bridge, single", "bridge, one transaction", "bridge, bulk",
]  # fmt: skip
# Those that start yet more drainers and workers for the same steps.
SLOW = {
    "enqueue": ([*CONTESTANTS[:2], *ALL_WAYS, "tiny, single", "tiny, bulk"], {"jobs_per_s"}),
    "drain": (["celery", "bridge"], {"jobs_per_s"}),
    "e2e": ([*CONTESTANTS[:3], "bridge, streaming", "bridge, bundles", "tiny"], {"jobs_per_s"}),
    "clients": (["celery", "bridge"], {"jobs_per_s", "p50_ms", "p99_ms"}),
    "growth": (["empty", "grown"], {"jobs_per_s", "lives_per_s", "wal_bytes_per_job"}),
    "latency": (CONTESTANTS, {"p50_ms", "p99_ms"}),
    "gate": (["plain", "gated"], {"jobs_per_s"}),
    "held": (["clean", "held"], {"jobs_per_s", "p50_ms", "p99_ms"}),
    "memory": (["bridge"], {"peak_mib"}),
    "urgent": (["bridge"], {"worst_ms"}),
}


thorough = pytest.mark.skipif(EFFORT == 1, reason="starts many processes for steps that others take too: BRIDGE_TEST_EFFORT=2 runs it")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", "bench", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, check=False, capture_output=True, text=True)


def sensible(scenario: dict[str, Any]) -> bool:
    """Whether every figure is one; on a busy machine a job may begin before its producer has read the clock."""
    latencies = {"p50_ms", "p99_ms"}
    figures = [pair for samples in scenario["rounds"] for sample in samples for pair in sample["figures"].items()]
    return all((-inf if name in latencies else -1e-9) < value < inf for name, value in figures)


def check(scenario: dict[str, Any], sides: list[str], figures: set[str]) -> None:
    (samples,) = scenario["rounds"]
    assert [sample["side"] for sample in samples] == sides
    assert all(figures <= set(sample["figures"]) for sample in samples if sample["side"] == sides[-1])
    assert sensible(scenario)


def test_every_scenario_counts_its_jobs_and_says_what_it_measured(dsn: str, redis_url: str, tmp_path: Path) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer", HOW_TO_GET_IT)
    picture, only = tmp_path / "figures.svg", [word for side in {*SOME, *MADE} for word in ("--side", side)]
    servers = ["--database-url", dsn, "--broker-url", redis_url]
    done = bench(*SAID, *TINY, *only, "--json", "--plot", str(picture), *servers)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [scenario["name"] for scenario in said["scenarios"]] == list(SAID)
    for scenario in said["scenarios"]:
        check(scenario, *SAID[scenario["name"]])
    whole = next(scenario for scenario in said["scenarios"] if scenario["name"] == "e2e")
    assert whole["condition"] == {"prefork": 1}
    seen = set(whole["cpu_us_per_job"]["bridge"])
    # What the children take for 40 jobs may be less than the tick that the kernel counts by.
    assert seen | {"worker children"} == {"client", "drainer", "postgres", "worker main", "worker children", "redis"}
    assert {ratio["baseline"] for ratio in whole["ratios"] if ratio["side"] == "bridge"} == {"celery, db results"}
    assert {"wal_bytes_per_job", "dead_rows_per_job"} <= {row["figure"] for row in whole["figures"] if row["side"] == "bridge"}
    assert said["servers"]["postgres"]["fsync"] in {"on", "off"}
    assert {"celery", "kombu", "redis", "redis_server", "postgres", "python", "psycopg"} <= set(said["versions"])
    assert picture.read_text().lstrip().startswith("<?xml")
    with psycopg.connect(dsn) as connection:  # as before
        assert connection.execute("select bridge.setting('window')").fetchone() == (500,)
        assert connection.execute("select count(*) from pg_database where datname like 'bench%'").fetchone() == (0,)


@thorough
@pytest.mark.parametrize("name", list(SLOW))
def test_a_scenario_with_many_processes_counts_its_jobs(name: str, dsn: str, redis_url: str) -> None:
    jobs = ["--jobs", "3000"] if name in {"memory", "urgent"} else []
    done = bench(name, *TINY, *jobs, "--json", "--database-url", dsn, "--broker-url", redis_url)
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["scenarios"]
    check(said, *SLOW[name])


@thorough
def test_a_soak_tells_sizes_and_waits(dsn: str, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    options = ["--minutes", "0.1", "--every", "2", "--concurrency", "1", "--database-url", dsn, "--broker-url", redis_url]
    command = [sys.executable, "-m", "bridge.bench.soak", *options, "--output", str(file)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr  # 1: something has grown, as it may in six seconds
    said = json.loads(file.read_text())
    assert all(set(state["tables"]) == {"job", "ready", "inflight"} for state in said["states"])
    assert len(said["waits"]) == len(said["states"]) >= 2


def test_a_database_that_holds_jobs_and_a_broker_that_holds_keys_are_left_alone(dsn: str, redis_server: RedisServer) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select bridge.enqueue('mail.send')")
        done = bench("drain", "--database-url", dsn, "--broker-url", redis_server.url)
        assert (done.returncode, "holds jobs" in done.stderr) == (1, True)
        assert connection.execute("select count(*) from bridge.job").fetchone() == (1,)
        connection.execute("truncate bridge.job, bridge.ready")
    redis_server.client().set("somebody", "else's")
    done = bench("drain", "--database-url", dsn, "--broker-url", redis_server.url)
    assert (done.returncode, "holds keys" in done.stderr) == (1, True)
    assert redis_server.client().get("somebody") == b"else's"


def test_a_run_that_is_ended_early_leaves_nothing_behind(redis_server: RedisServer, server_folder: Path) -> None:
    del redis_server  # asked for so that the test is skipped where there is no Redis
    folder = server_folder / "disk"
    folder.mkdir(mode=0o711)
    command = [sys.executable, "-m", "bridge", "bench", "drain", "--side", "bridge", "--jobs", "20000"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(folder.glob("bench-*/drainer.log")), 150.0, "a drainer that starts")
        process.terminate()
        assert process.wait(60.0) == 1
    finally:
        process.kill()
        process.wait()
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == []
