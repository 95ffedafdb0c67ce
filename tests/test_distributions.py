"""What is installed elsewhere: a wheel, an sdist and an editable install, each in a new environment without extras."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from fix_servers import ROOT

import bridge

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def install(requirement: list[str], folder: Path) -> Path:
    """Install into a new environment, with uv where it is found; its folder of programs."""
    python = folder / "bin/python"
    if shutil.which("uv"):
        make = ["uv", "venv", "--quiet", "--python", sys.executable, str(folder)]
        install = ["uv", "pip", "install", "--quiet", "--python", str(python), *requirement]
    else:
        make = [sys.executable, "-m", "venv", str(folder)]
        install = [str(python), "-m", "pip", "install", "--quiet", *requirement]
    for command in (make, install):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
        assert done.returncode == 0, done.stderr
    return folder / "bin"


def requirement_of(kind: str, built: Path) -> list[str]:
    match kind:
        case "wheel":
            return [str(next(built.glob("*.whl")))]
        case "sdist":
            return [str(next(built.glob("*.tar.gz")))]
        case _:
            return ["--editable", str(ROOT)]


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_the_base_install_runs_a_queue(kind: str, built: Path, tmp_path: Path, empty_dsn: str, redis_url: str) -> None:
    programs = install(requirement_of(kind, built), tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"BRIDGE_DATABASE_URL": empty_dsn, "BRIDGE_BROKER_URL": redis_url}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"schema bridge {bridge.__version__} is installed" in run("bridge", "install")
    run("bridge", "tick")
    assert run("bridge", "drain", "--once") == "published 0 jobs\n"
    # No drainer and no worker run here: doctor says so, and does it without an extra.
    assert '"checks"' in run("sh", "-c", "bridge doctor --json; test $? -le 1")
    run("python", "-c", "import bridge.worker.plugin, bridge.loader, bridge.backend")
    # An application that has not joined, and only reads results, finds them where those that have joined keep them.
    kind_of = "import celery, sys; print(type(celery.Celery(backend=sys.argv[1]).backend).__name__)"
    assert run("python", "-c", kind_of, f"bridge+{redis_url}") == "BridgeRedisBackend\n"
    assert run("python", "-c", kind_of, "bridge://") == "BridgeBackend\n"


def test_the_wheel_carries_the_library_and_its_sql_alone(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {f"bridge/sql/{file.name}" for file in (ROOT / "sql").glob("*.sql")} <= set(names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"bridge"}


def test_the_sdist_carries_the_pipelines_and_all_that_make_needs(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"tasks/app.py", "tasks/media/samples/meadow.jpg", "sql/00_schema.sql", "Makefile", "compose.yaml", "scripts/environment"}
    assert wanted - names == set()
