"""Applications of the calling side, joined to the bridge, whose broker nobody can reach: making a job does not need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest
from celery import Celery

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

DOWN = "redis://127.0.0.1:1/0"


class MakeApp(Protocol):
    """What the fixture `make_caller` gives."""

    def __call__(self, broker: str = DOWN, backend: str = "bridge://", **conf: Any) -> Any:
        """An application with these settings, joined with the options `only` and `exclude` when they are among them."""


@pytest.fixture
def make_caller(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeApp]:
    """Make applications whose calls become rows in this test's database."""
    made: list[Any] = []
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)

    def make(broker: str = DOWN, backend: str = "bridge://", **conf: Any) -> Any:
        patterns = {name: conf.pop(name) for name in ("only", "exclude") if name in conf}
        app = Celery("caller", broker=broker, backend=backend, set_as_current=False)
        app.conf.update(conf)
        bridge.install(app, **patterns)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()
        joined = app.bridge
        if "connections" in joined.__dict__:
            joined.connections.close()


@pytest.fixture
def caller(make_caller: MakeApp) -> Any:
    """One such application, as it comes."""
    return make_caller()
