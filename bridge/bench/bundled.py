"""The same application, whose tasks travel in bundles."""

from __future__ import annotations

from celery import Celery

from bridge import install
from bridge.bench import jobs

__all__ = ["app"]

app = Celery("bench")
install(app)
jobs.register(app, bridge_bundle=200)
