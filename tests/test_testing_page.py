"""The page on testing is followed: its application and its tests, run by a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from fix_documents import blocks_of
from fix_servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import DatabaseServer


def test_the_examples_of_the_page_pass(postgres: DatabaseServer, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "CELERY_", "PYTEST_"))}
    kept |= {"BRIDGE_TEST_DATABASE_URL": postgres.dsn_of("postgres"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for block in blocks_of(ROOT / "docs/testing.md"):
        if block.kind == "write":
            (tmp_path / block.name).write_text(block.text)
        else:
            command = [sys.executable, *block.text.split()[1:], "-p", "no:cacheprovider"]
            done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False, timeout=150)
            assert done.returncode == 0, done.stdout + done.stderr
            assert " passed" in done.stdout
