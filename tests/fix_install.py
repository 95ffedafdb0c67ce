"""Installing by other means than ours, what came of it, and traffic meanwhile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_background import Background
from fix_servers import ROOT, missing
from fix_sql import Session

from bridge.local.binaries import find_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


def program(name: str) -> str:
    chosen = os.environ.get("BRIDGE_TEST_POSTGRES_BIN")
    binaries = find_postgres(folder=Path(chosen) if chosen else None)
    assert binaries is not None
    found = Path(binaries.folder) / name
    if not found.exists():
        missing(f"{name} beside this postgres", "apt-get install postgresql-15")
    return str(found)


def psql_all_files(dsn: str) -> None:
    """What the README says: cat sql/*.sql | psql -1."""
    text = "".join(path.read_text() for path in sorted((ROOT / "sql").glob("*.sql")))
    done = subprocess.run(
        [program("psql"), "-1", "-v", "ON_ERROR_STOP=1", "-q", "-d", dsn],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def dump(dsn: str) -> str:
    done = subprocess.run([program("pg_dump"), "-s", "-d", dsn], capture_output=True, text=True, timeout=60, check=True)
    # A random key against injection differs from dump to dump.
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


class Traffic(Background):
    """Jobs that flow through their whole life in a session of their own, until told to stop."""

    def __init__(self, dsn: str) -> None:
        self.db = Session(dsn)
        self.lives = 0
        self.longest = 0.0
        super().__init__()

    def step(self) -> None:
        before = self.db.one("select clock_timestamp()")
        self.db.enqueue(unique_key="always the same")
        self.db.finish(*self.db.run())
        self.longest = max(self.longest, (self.db.one("select clock_timestamp()") - before).total_seconds())
        self.lives += 1


@pytest.fixture
def traffic(dsn: str) -> Iterator[Traffic]:
    traffic = Traffic(dsn)
    yield traffic
    traffic.stop()
