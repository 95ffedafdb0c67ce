"""Fixtures for pytest. A project that wants them writes ``pytest_plugins = ["bridge.testing.plugin"]`` into its ``conftest.py``.

They are not loaded by themselves: a project that only has the package installed sees no names, options or start-up time of ours.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge import schema
from bridge.testing import databases
from bridge.testing.applications import renew
from bridge.testing.processes import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.testing.databases import Databases

__all__ = ["bridge_database", "bridge_prepare", "bridge_server", "bridge_template", "bridge_worker"]


@pytest.fixture(scope="session")
def bridge_server() -> Iterator[Databases]:
    """Databases on the server of ``BRIDGE_TEST_DATABASE_URL``, whose role may create some; else on a local server."""
    yield from databases.server()


@pytest.fixture(scope="session")
def bridge_prepare() -> Callable[[str], None]:
    """Called with the DSN of the template, in which the schema is installed. Override it to add tables of your own."""
    return lambda _: None


@pytest.fixture(scope="session")
def bridge_template(bridge_server: Databases, bridge_prepare: Callable[[str], None]) -> str:
    """Name of the database that each test gets a copy of."""
    name = bridge_server.create()
    schema.install(bridge_server.dsn_of(name))
    bridge_prepare(bridge_server.dsn_of(name))
    return name


@pytest.fixture
def bridge_database(bridge_server: Databases, bridge_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """DSN of this test's own database. All applications that have joined, or join during the test, write into it.

    Their results are in its rows alone, whatever result backend they have: no other server is needed.
    """
    name = bridge_server.create(bridge_template)
    dsn = bridge_server.dsn_of(name)
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "bridge://")
    renew()
    yield dsn
    renew()
    bridge_server.drop(name)


@pytest.fixture
def bridge_worker(bridge_database: str) -> Iterator[Workers]:
    """Start workers on demand: ``bridge_worker("shop")`` starts ``celery -A shop worker``, and a drainer with the first."""
    folder = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    workers = Workers(bridge_database, folder)
    yield workers
    workers.stop()
    shutil.rmtree(folder, ignore_errors=True)
