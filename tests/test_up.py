"""`bridge up` as a user runs it: a real process, a real stack, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest
from fix_servers import ROOT, missing, wait_for_row, wait_until

from bridge.local.binaries import find_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

APP = """
import celery
import bridge

app = celery.Celery("tasks", backend="bridge://")
bridge.install(app)

@app.task(name="sums.add")
def add(a, b):
    return a + b
"""
ADD = "select bridge.enqueue('sums.add', '[20, 22]')"
DONE = "select 1 from bridge.jobs where id = %s and status = 'succeeded' and result::text = '42'"

Up = psutil.Popen


@pytest.fixture
def home(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home folder that does not exist yet."""
    if find_postgres() is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    folder = server_folder / f"up{abs(hash(request.node.nodeid)) % 10**6}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bridge(home: Path, tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts `bridge` with these words, in a folder with a `tasks.py`; those that are left are ended."""
    started: list[Up] = []
    (tmp_path / "tasks.py").write_text(APP)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    environment |= {"BRIDGE_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(*words: str, env: Mapping[str, str] | None = None) -> Up:
        errors = (tmp_path / f"errors-{len(started)}").open("w")
        command = [sys.executable, "-m", "bridge", *words]
        child = Up(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=tmp_path, env={**environment, **(env or {})})
        started.append(child)
        return child

    yield start
    for child in started:
        if child.is_running():
            child.terminate()
        child.wait(40)


def endpoints(child: Up) -> dict[str, Any]:
    """What `bridge up --json` prints once it is ready."""
    text = ""
    while not text.endswith("}\n"):
        line = child.stdout.readline()
        assert line, "it ended before it was ready"
        text += line
    found: dict[str, Any] = json.loads(text)
    return found


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def adds(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(ADD).fetchone()
    assert row
    wait_for_row(dsn, DONE, row)


PLANTED = {
    "BRIDGE_SIGNING_KEY": "planted-signing-key-4711-0123456789abcdef", "BRIDGE_WEBHOOK_SECRET": "planted-webhook-4711",
    "BRIDGE_NOTIFIER_OPS": "json://me:planted-notifier-4711@127.0.0.1:1/x", "SHOP_API_KEY": "planted-application-4711",
    "HTTPS_PROXY": "http://me:planted-proxy-4711@127.0.0.1:1",
}  # fmt: skip
TABLES = "select c.oid::regclass::text from pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind in ('r', 'p')"


def flowers_pages(url: str) -> str:
    """What Flower shows of the worker, the broker and the tasks."""
    workers = wait_until(lambda: httpx.get(f"{url}/workers?json=1", timeout=30).json()["data"], 60, "a worker")
    names = [f"worker/{worker['hostname']}" for worker in workers]
    pages = [httpx.get(f"{url}/{page}", timeout=30) for page in ("", "broker", "tasks", *names)]
    return str(workers) + "".join(page.text for page in pages)


def test_secrets_of_who_starts_it_are_in_no_server_output_log_row_page_or_list_of_processes(
    bridge: Callable[..., Up], home: Path, tmp_path: Path
) -> None:
    up = bridge("up", "--json", "--concurrency", "1", env=PLANTED)
    found = endpoints(up)
    adds(found["dsn"])
    shown, servers = {}, set()
    for one in [up, *up.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a session of Postgres that has ended meanwhile
            shown[f"words of {one.name()} {one.pid}"] = " ".join(one.cmdline())
            if one.name() in {"postgres", "redis-server", "valkey-server"}:
                shown[f"environment of {one.name()} {one.pid}"] = str(one.environ())
                servers.add(one.name())
    assert len(servers) == 2
    if found["flower_url"]:
        shown["flower"] = flowers_pages(found["flower_url"])
    with psycopg.connect(found["dsn"]) as connection:
        names = [name for (name,) in connection.execute(TABLES).fetchall()]
        shown |= {name: str(connection.execute(f"select t::text from {name} t".encode()).fetchall()) for name in names}
    up.terminate()
    shown["output"] = json.dumps(found) + up.stdout.read() + (tmp_path / "errors-0").read_text()
    up.wait(40)
    shown |= {str(log): log.read_text(errors="replace") for log in home.rglob("*.log")}
    assert "ready" in shown[str(home / "logs/worker.log")]
    assert {place for place, text in shown.items() if "planted" in text} == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_jobs_until_a_signal_and_ends_with_0(bridge: Callable[..., Up], number: signal.Signals) -> None:
    up = bridge("up", "--json", "--concurrency", "1", "--no-flower")
    adds(endpoints(up)["dsn"])
    everything = up.children(recursive=True)
    up.send_signal(number)
    assert up.wait(30) == 0
    assert living(everything) == []


def test_ctrl_c_before_it_is_ready_ends_with_0_and_leaves_nothing(bridge: Callable[..., Up], home: Path) -> None:
    up = bridge("up", "--no-flower")
    wait_until((home / "postgres/run/.s.PGSQL.5432").exists, what="postgres is started")
    everything = up.children(recursive=True)
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0
    assert living(everything) == []


def test_sigkill_leaves_no_orphan_and_the_next_start_has_the_jobs_of_the_first(bridge: Callable[..., Up]) -> None:
    first = bridge("up", "--json", "--concurrency", "1", "--no-flower")
    with psycopg.connect(endpoints(first)["dsn"], autocommit=True) as connection:
        connection.execute("select bridge.pause('celery')")
        row = connection.execute(ADD).fetchone()
    everything = first.children(recursive=True)
    first.kill()
    first.wait()
    second = bridge("up", "--json", "--concurrency", "1", "--no-flower")
    dsn = endpoints(second)["dsn"]
    wait_until(lambda: not living(everything), what="every process of the first is gone")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select bridge.resume('celery')")
    wait_for_row(dsn, DONE, row or ())


def test_it_says_where_everything_is_and_other_commands_find_it(bridge: Callable[..., Up], home: Path) -> None:
    up = bridge("up", "--no-flower", "--concurrency", "1")
    said = ""
    while "Ctrl-C" not in said:
        said += up.stdout.readline()
    assert f"export BRIDGE_DATABASE_URL='postgresql://postgres@/bridge?host={home}" in said
    assert "export BRIDGE_BROKER_URL=" in said
    assert "celery -A tasks worker" in said
    assert str(home / "logs") in said
    listing = bridge("jobs", "list")
    assert listing.wait(20) == 0
    assert listing.stdout.read().startswith("id\ttask")


def test_a_second_start_names_the_first(bridge: Callable[..., Up], home: Path, tmp_path: Path) -> None:
    first = bridge("up", "--app", "none", "--json")
    endpoints(first)
    second = bridge("up")
    assert second.wait(20) == 1
    assert f"a stack runs in {home} already (pid {first.pid})" in (tmp_path / "errors-1").read_text()


def test_without_an_application_there_are_servers_and_a_drainer_alone(bridge: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "tasks.py").unlink()
    up = bridge("up", "--json")
    dsn = endpoints(up)["dsn"]
    commands = [" ".join(child.cmdline()) for child in up.children()]
    assert [command for command in commands if "celery" in command.split()] == []
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(ADD).fetchone()
    wait_for_row(dsn, "select 1 from bridge.jobs where id = %s and status = 'published'", row or ())


def test_an_application_that_does_not_load_is_shown_with_the_log(bridge: Callable[..., Up], tmp_path: Path) -> None:
    up = bridge("up", "--app", "nowhere", "--no-flower")
    assert up.wait(60) == 1
    errors = (tmp_path / "errors-0").read_text()
    assert "worker ended with status" in errors
    assert "nowhere" in errors
