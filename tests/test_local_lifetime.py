"""What becomes of local servers when the process that started them is killed, as root and as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from fix_servers import ROOT, wait_until

from bridge.local.account import Account
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUPERVISOR = """
import os, sys
from pathlib import Path
from bridge.local.broker import start_broker
from bridge.local.home import open_home
from bridge.local.postgres import PostgresServer

if sys.argv[2:]:
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
home = open_home(Path(sys.argv[1]))
postgres = PostgresServer(home / "postgres").start()
broker = start_broker(home / "broker")
pids = [postgres.process.pid] + ([broker.process.pid] if broker.process else [])
print(*pids, flush=True)
sys.stdin.read()
broker.stop()
postgres.stop()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children of a dead parent on Linux only")


class Supervisor:
    """A process that runs a Postgres and a broker in a home of its own."""

    def __init__(self, home: Path, account: Account | None) -> None:
        # It drops by itself, after its imports: root's Python may lie in a folder that is closed to others.
        drop = [] if account is None else [str(account.uid), str(account.gid)]
        self.child = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(home), *drop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            pytest.fail(self.child.communicate()[1])
        self.servers = [psutil.Process(int(word)) for word in line.split()]

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.communicate(input="")


@pytest.fixture(params=["ourselves", "an ordinary user"])
def account(request: pytest.FixtureRequest) -> Account | None:
    """Who runs the supervisor."""
    if request.param == "ourselves":
        return None
    if os.geteuid() != 0:
        pytest.skip("we are an ordinary user")
    entry = pwd.getpwnam("nobody")
    return Account("nobody", entry.pw_uid, entry.pw_gid)


@pytest.fixture
def home(server_folder: Path, account: Account | None, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home folder below one that belongs to the account."""
    parent = server_folder / f"life{abs(hash(request.node.nodeid)) % 10**6}"
    parent.mkdir(mode=0o711)
    if account is not None:
        os.chown(parent, account.uid, account.gid)
    yield parent / "home"
    shutil.rmtree(parent, ignore_errors=True)


def all_below(servers: list[psutil.Process]) -> list[psutil.Process]:
    return [*servers, *(child for server in servers for child in server.children(recursive=True))]


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; an ended one may wait for init to take notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_supervisor_leaves_no_orphan_and_the_next_start_recovers(home: Path, account: Account | None) -> None:
    first = Supervisor(home, account)
    everything = all_below(first.servers)
    first.kill()
    # At once, while Postgres may still be shutting down: that is what a user does.
    second = Supervisor(home, account)
    try:
        wait_until(lambda: not [one for one in everything if lives(one)], what="every process of the first is gone")
        assert {one.pid for one in second.servers}.isdisjoint(one.pid for one in everything)
    finally:
        second.end()


def test_everything_is_gone_when_the_supervisor_ends_by_itself(home: Path, account: Account | None) -> None:
    supervisor = Supervisor(home, account)
    everything = all_below(supervisor.servers)
    supervisor.end()
    assert [one for one in everything if lives(one)] == []


def test_an_orphan_that_the_kernel_could_not_end_is_ended_by_the_next_start(home: Path, account: Account | None) -> None:
    first = Supervisor(home, account)
    postgres = first.servers[0]
    # Stopped, as by a debugger: the signal of its parent's death waits.
    postgres.send_signal(signal.SIGSTOP)
    first.kill()
    second = Supervisor(home, account)
    try:
        assert not lives(postgres)
        assert second.child.poll() is None
    finally:
        second.end()


def test_children_of_one_that_has_ended_are_ended_and_nobody_who_has_its_number_since(tmp_path: Path) -> None:
    leaving = Process("leaving", ["sh", "-c", "sleep 600 & echo $!"], log=tmp_path / "leaving.log")
    leaving.start()
    leaving.wait()
    child = psutil.Process(int(leaving.log_text()))
    leaving.stop()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    leaving._started().pid = stranger.pid  # as the system gives numbers again after a while
    leaving.stop()
    stranger.terminate()
    assert stranger.wait() == -signal.SIGTERM, "it had been killed before"
