"""The test's own process as a client of its database: what Python calls reach, and the command line run in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from bridge.cli import main
from bridge.client import forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ours(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a client of the test's database; connections to another's are forgotten."""
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    forget_connections()
    yield
    forget_connections()


def command(*words: object, text: str | None = None) -> Result:
    """What `bridge` with these words prints and answers; `text` is its standard input."""
    return CliRunner().invoke(main, [*map(str, words)], input=text)


def answer(*words: object) -> Any:
    """What it prints as JSON, when it succeeds."""
    result = command(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
