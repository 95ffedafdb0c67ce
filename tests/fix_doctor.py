"""How the doctor's tests ask it: one check, with limits of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from bridge.doctor import Finding, Grade, Limits, examine
from bridge.settings import Settings

EVERY = 0.2  # seconds between two looks: each opens connections
NOWHERE = "redis://127.0.0.1:1/0"


@dataclass
class Doctor:
    """Asks about one pair of servers."""

    dsn: str
    broker_url: str = NOWHERE
    timeout: float = 5.0

    def look(self, name: str, **limits: float) -> Finding:
        settings = Settings(database_url=self.dsn, broker_url=self.broker_url)
        found = {finding.name: finding for finding in examine(settings, Limits(**limits), names=[name], timeout=self.timeout)}
        return found[name]

    def wait(self, name: str, grade: Grade, timeout: float = 30.0, **limits: float) -> Finding:
        """Look until the check has this grade."""
        deadline = time.monotonic() + timeout
        while (finding := self.look(name, **limits)).status is not grade:
            if time.monotonic() > deadline:
                pytest.fail(f"not {grade} within {timeout:g} s: {finding}")
            time.sleep(EVERY)
        return finding


def execute(dsn: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement, committed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``bridge doctor`` as a user does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    return subprocess.run(
        [sys.executable, "-m", "bridge", "doctor", *arguments],
        env=kept | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What ``--json`` printed, by check."""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}
