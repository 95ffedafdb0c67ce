"""The tasks."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject

from flask_reports.database import connection, note


@shared_task(ignore_result=False)
def add(a: int, b: int) -> int:
    return a + b


@shared_task
def build(report: int) -> None:
    row = connection().execute("select title from reports where id = %s", (report,)).fetchone()
    connection().execute("update reports set body = %s where id = %s", (f"All about {row[0] if row else '?'}", report))
    note(f"report {report}", "built")


@shared_task(ignore_result=False)
def invoice(price: Decimal, day: datetime) -> dict[str, Any]:
    """Arguments and results that JSON does not know, and Celery's does."""
    return {"price": price * 2, "day": day.replace(tzinfo=UTC), "types": [type(price).__name__, type(day).__name__]}


@shared_task(bind=True, ignore_result=False)
def context(self: Task) -> dict[str, Any]:
    """What a task sees of its request."""
    request = self.request
    return {
        "task": request.task, "args": request.args, "kwargs": request.kwargs, "retries": request.retries,
        "root": request.root_id == request.id, "parent": request.parent_id, "group": request.group, "eager": request.is_eager,
        "timelimit": request.timelimit, "queue": request.delivery_info["routing_key"], "priority": request.delivery_info["priority"],
        "shadow": request.shadow, "colour": request.headers and request.headers.get("colour"), "called_directly": request.called_directly,
    }  # fmt: skip


@shared_task(bind=True, ignore_result=False, max_retries=1, default_retry_delay=0)
def stubborn(self: Task, label: str, how: str) -> str:
    note(label, f"{how} retries={self.request.retries}")
    match how:
        case "ignore":
            raise Ignore
        case "reject":
            raise Reject("no", requeue=False)
        case "retry-with-more":
            if not self.request.retries:
                raise self.retry(args=(label, how), kwargs={}, countdown=0)
        case "exit":
            raise SystemExit(1)
        case "unserializable":
            return object()  # type: ignore[return-value]
    return how


@shared_task(ignore_result=False, soft_time_limit=1)
def endless(label: str) -> None:
    import time

    try:
        time.sleep(60)
    finally:
        note(label, "cleaned up")
