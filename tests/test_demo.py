"""`bridge demo` as a user runs it, from nothing to the last line, on the shipped samples and on files of his own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from fix_servers import ROOT, missing
from PIL import Image
from psycopg.rows import dict_row

from bridge.local.account import identity, server_account
from bridge.local.binaries import find_postgres
from bridge.local.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.local.account import Account

LAST_LINE = re.compile(r"(\d+) succeeded, (\d+) failed of (\d+) jobs in [\d.]+ s; pictures in (.+)")
# An interpreter of the machine finds the libraries of ours there; it is asked for one of the same version only.
PATH = os.pathsep.join([str(ROOT), sysconfig.get_path("platlib")])
SAMPLES = ROOT / "tasks/media/samples"


@dataclass
class Home:
    """A state folder, who the demo runs as, and what its runs left."""

    path: Path
    account: Account | None = None
    python: str = sys.executable

    def command(self, *words: object) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "MEDIA_"))}
        environment |= {"BRIDGE_HOME": str(self.path), "PYTHONPATH": PATH, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, "-m", "bridge", "demo", *map(str, words)]
        return {"args": command, "cwd": ROOT, "env": environment, "text": True, **identity(self.account)}

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self.command(*words), check=False, capture_output=True, timeout=120)

    def left_running(self) -> list[str]:
        """Processes that were started with this folder in their environment or command."""
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue
            if any(str(self.path) in word for word in words):
                found.append(" ".join(process.cmdline()))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The jobs in the database, which is started for this question."""
        server = PostgresServer(self.path / "postgres").start()
        try:
            with psycopg.connect(server.dsn, row_factory=dict_row) as connection:
                return connection.execute("select * from bridge.jobs order by created_at, kwargs->>'path'").fetchall()
        finally:
            server.stop()


@pytest.fixture(scope="module")
def home(server_folder: Path) -> Iterator[Home]:
    """One state folder for the tests of this module: the first run makes it, the others find it."""
    if find_postgres() is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    yield Home(server_folder / "demo")
    shutil.rmtree(server_folder / "demo", ignore_errors=True)


@pytest.fixture(scope="module")
def samples_run(home: Home) -> subprocess.CompletedProcess[str]:
    """A demo on the shipped samples, from nothing."""
    return home.run()


@pytest.fixture(scope="module")
def rows(home: Home, samples_run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The job rows of that demo by file name; the sheet's is under its task."""
    assert samples_run.returncode == 0
    return {Path(row["kwargs"].get("path", row["task"])).name: row for row in home.rows()}


def counts(run: subprocess.CompletedProcess[str]) -> tuple[int, int, int]:
    """Succeeded, failed and all, out of the last line."""
    assert run.returncode == 0, run.stdout + run.stderr
    last = LAST_LINE.fullmatch(run.stdout.splitlines()[-1])
    assert last, run.stdout
    return int(last[1]), int(last[2]), int(last[3])


def test_it_ends_with_one_line_of_counts(samples_run: subprocess.CompletedProcess[str], home: Home) -> None:
    assert counts(samples_run) == (5, 1, 6)
    assert samples_run.stdout.endswith(f"; pictures in {home.path / 'pictures'}\n")


def test_nothing_is_left_running(samples_run: subprocess.CompletedProcess[str], home: Home) -> None:
    assert samples_run.returncode == 0
    assert home.left_running() == []


def test_every_good_sample_is_a_succeeded_row(rows: dict[str, dict[str, Any]]) -> None:
    good = {"bees.pdf", "meadow.jpg", "pendulum.mp4", "signet.png", "media.contact_sheet"}
    assert {name for name, row in rows.items() if row["status"] == "succeeded"} == good
    assert rows["bees.pdf"]["result"]["pages"] == 3
    assert rows["pendulum.mp4"]["result"]["duration"] == pytest.approx(2.0, abs=0.2)


def test_the_corrupt_sample_is_a_failed_row_that_says_why(
    rows: dict[str, dict[str, Any]], samples_run: subprocess.CompletedProcess[str]
) -> None:
    broken = rows["broken.jpg"]
    assert (broken["status"], broken["attempts"]) == ("failed", 1)
    assert broken["error"]["message"].startswith("broken.jpg: ")
    assert broken["error"]["message"] in samples_run.stdout


def test_thumbnails_and_the_contact_sheet_are_pictures(rows: dict[str, dict[str, Any]], home: Home) -> None:
    made = [row["result"] for row in rows.values() if row["status"] == "succeeded" and "path" in row["kwargs"]]
    for path in [result[kind] for result in made for kind in ("thumbnail", "card")]:
        assert Path(path).is_relative_to(home.path / "pictures")
        with Image.open(path) as picture:
            picture.verify()
    with Image.open(home.path / "pictures/contact-sheet.png") as sheet:
        assert min(sheet.size) > 400


def test_each_state_of_each_file_is_a_plain_line(samples_run: subprocess.CompletedProcess[str]) -> None:
    lines = samples_run.stdout.splitlines()
    for name in ("bees.pdf", "meadow.jpg", "pendulum.mp4", "signet.png", "contact sheet"):
        assert any(line.startswith(f"{name}: succeeded in ") for line in lines)
    assert any(line.startswith("broken.jpg: failed in ") for line in lines)
    assert "\x1b" not in samples_run.stdout


def test_what_to_try_next_has_the_real_id_of_the_failed_job(
    rows: dict[str, dict[str, Any]], samples_run: subprocess.CompletedProcess[str]
) -> None:
    assert f"bridge jobs show {rows['broken.jpg']['id']}" in samples_run.stdout


def test_a_later_run_takes_folders_and_counts_its_own_files_alone(
    samples_run: subprocess.CompletedProcess[str], home: Home, tmp_path: Path
) -> None:
    assert samples_run.returncode == 0
    folder = tmp_path / "my pictures/deep"
    folder.mkdir(parents=True)
    shutil.copy(SAMPLES / "meadow.jpg", folder / "holiday.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("not looked at")
    assert counts(home.run(tmp_path / "my pictures", SAMPLES / "broken.jpg")) == (2, 1, 3)


def test_files_that_all_fail_give_no_sheet_and_are_no_failure_of_the_demo(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert counts(home.run(tmp_path / "empty.png")) == (0, 1, 1)


def test_ctrl_c_leaves_nothing_running(home: Home) -> None:
    child = subprocess.Popen(**home.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    while "on their way" not in (line := child.stdout.readline()):
        assert line
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=40)
    assert child.returncode == 1
    assert home.left_running() == []


def usable_python(account: Account) -> str:
    """A Python of our version that the account may run; root's own often lies in root's home."""
    names = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", f"/usr/local/bin/python3.{sys.version_info.minor}")
    for python in names:
        if account.can_run("/usr/bin/env", f"PYTHONPATH={PATH}", python, "-c", "import bridge, celery, psycopg, redis"):
            return python
    pytest.skip(f"the checkout or every Python of this version is closed to user {account.name}")


def test_an_ordinary_user_gets_the_same(server_folder: Path) -> None:
    account = server_account()
    if account is None:
        pytest.skip("we are an ordinary user: every test here says it")
    python = usable_python(account)
    place = server_folder / "demo-user"
    place.mkdir(mode=0o700)
    os.chown(place, account.uid, account.gid)
    home = Home(place / "home", account, python)
    assert counts(home.run()) == (5, 1, 6)
    assert home.left_running() == []


def test_a_file_that_is_not_there_is_wrong_use(home: Home) -> None:
    run = home.run("/no/such/file.jpg")
    assert run.returncode == 2
    assert "/no/such/file.jpg" in run.stderr


def test_a_folder_without_any_media_is_told_before_anything_starts(home: Home, tmp_path: Path) -> None:
    run = home.run(tmp_path)
    assert run.returncode == 1
    assert f"no picture, PDF or video in {tmp_path}" in run.stderr
    assert run.stdout == ""
