"""The result backend: outcomes reach the row, and ``AsyncResult`` reads them from it.

Alone (``bridge://``) Postgres holds states and results. Composed (``bridge+redis://…``, or any other that the application already
uses) the application's own backend keeps results as it did, and the row follows.
"""

from __future__ import annotations

from typing import Any

from celery.app import backends

from bridge.results.alone import BridgeBackend
from bridge.results.composed import Composed
from bridge.results.writer import RowWriter

__all__ = ["BridgeBackend", "RowWriter", "make_backend"]

_ALONE = ("", "bridge://", "bridge:", "disabled", "disabled://")


def make_backend(app: Any, url: str | None = None, **options: Any) -> Any:
    """The backend of an application: ours alone, or ours over the one that its ``result_backend`` names.

    Celery calls it through the entry point ``bridge`` (``result_backend = "bridge://"``), or because ``install`` has set it.
    """
    configured = url if url is not None else (app.conf.result_backend or "")
    inner = configured.removeprefix("bridge+")
    if inner in _ALONE or inner.startswith("bridge://"):
        return BridgeBackend(app=app, url=inner or "bridge://", **options)
    kind, inner_url = backends.by_url(inner, app.loader)
    mixed = type(f"Bridge{kind.__name__}", (Composed, kind), {"bridge_url": configured})
    return mixed(app=app, url=inner_url, **options)
