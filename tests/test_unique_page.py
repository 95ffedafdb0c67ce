"""The page on unique jobs is followed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from fix_documents import blocks_of
from fix_servers import ROOT

if TYPE_CHECKING:
    from fix_sql import Session


def test_the_examples_of_the_page_do_what_it_says(db: Session) -> None:
    for block in blocks_of(ROOT / "docs/unique-jobs.md"):
        if block.kind == "sql":
            assert db.connection.execute(block.text.split("select count(*)", 1)[0].encode())
            assert db.rows("select count(*)" + block.text.split("select count(*)", 1)[1]) == [(1, "last")]
        else:
            environment = {**os.environ, "BRIDGE_DATABASE_URL": db.dsn, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", block.text], env=environment, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stderr
    assert db.one("select count(*) from bridge.jobs where unique_key = 'report-sales-2026'") == 1
