"""Pages of the documentation are followed as a reader would: their SQL and their commands, on a database of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from fix_documents import blocks_of
from fix_servers import ROOT

PAGES = ("dead-letters.md", "life-of-a-job.md", "limits.md", "pg-cron.md", "queues.md", "security.md", "upkeep.md", "workflows.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_work_as_they_are_written(page: str, dsn: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "PATH": path, "PYTHONPATH": str(ROOT)}
    blocks = blocks_of(ROOT / "docs" / page)
    assert {block.kind for block in blocks} <= {"sql", "run", "python"}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for block in blocks:
            if block.kind == "sql":
                connection.execute(block.text.encode())
                continue
            command = ["bash", "-euo", "pipefail", "-c"] if block.kind == "run" else [sys.executable, "-c"]
            done = subprocess.run(
                [*command, block.text], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
