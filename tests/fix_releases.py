"""Releases that are kept in tests/releases: their schema, and real processes of theirs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from fix_servers import ROOT, Launcher
from fix_sql import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_templates import TemplateDatabases

RELEASED = "0.1.0"  # the one before this


def wheel_of(version: str) -> Path:
    """The wheel of a release."""
    return ROOT / f"tests/releases/celery_bridge-{version}-py3-none-any.whl"


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last release, as an installer would have put it into an environment."""
    folder = tmp_path_factory.mktemp(f"released-{RELEASED}")
    with zipfile.ZipFile(wheel_of(RELEASED)) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture
def old(request: pytest.FixtureRequest, released: Path, tmp_path: Path) -> Iterator[Launcher]:
    """Starts processes of the last release; the checkout is not on their path."""
    folder = tmp_path / "old"
    folder.mkdir()
    launcher = Launcher(request, folder, cwd=folder, path=(released, ROOT / "tests"))
    yield launcher
    launcher.end()


@pytest.fixture(scope="session")
def old_template(databases: TemplateDatabases, released: Path) -> str:
    """Name of a database with the schema of the last release."""
    return databases.make_template(lambda dsn: install_released(released, dsn))


def install_released(released: Path, dsn: str) -> str:
    """Run ``bridge install`` of the last release; what it says."""
    env = {"PYTHONPATH": str(released), "BRIDGE_DATABASE_URL": dsn}
    done = subprocess.run([sys.executable, "-m", "bridge", "install"], env=env, cwd=released, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def old_dsn(databases: TemplateDatabases, old_template: str) -> Iterator[str]:
    """DSN of a new database with the schema of the last release."""
    name = databases.create(old_template)
    yield databases.server.dsn_of(name)
    databases.drop(name)


@pytest.fixture
def old_db(old_dsn: str) -> Session:
    """A session on it."""
    session = Session(old_dsn)
    assert session.one("select bridge.version()") == RELEASED
    return session
