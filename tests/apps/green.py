"""A pool of greenlets that psycopg does not know of."""

from __future__ import annotations

from celery.concurrency.solo import TaskPool as SoloPool


class TaskPool(SoloPool):
    """As eventlet's says of itself."""

    is_green = True
