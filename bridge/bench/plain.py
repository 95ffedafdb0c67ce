"""Celery as it comes. CELERY_BROKER_URL and CELERY_RESULT_BACKEND say where its Redis is; nothing else is set."""

from __future__ import annotations

from celery import Celery

from bridge.bench import jobs

__all__ = ["app"]

app = Celery("bench")
jobs.register(app)
