"""The pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from celery.result import AsyncResult
from conversation import shown
from flask import Blueprint, request

from flask_reports import tasks
from flask_reports.database import connection

bp = Blueprint("tasks", __name__)
DAY = datetime(2026, 2, 3, 4, 5, 6)  # noqa: DTZ001 - a time without zone is one of the things to be carried


@bp.get("/tasks/<task_id>")
def result(task_id: str) -> dict[str, Any]:
    return shown(AsyncResult(task_id))


@bp.post("/add")
def add() -> dict[str, Any]:
    """Wait for it, as impatient pages do."""
    called = tasks.add.delay(request.json["a"], request.json["b"])
    return {"task": called.id, "sum": called.get(timeout=60)}


@bp.post("/reports")
def create() -> tuple[dict[str, Any], int]:
    row = connection().execute("insert into reports (title) values (%s) returning id", (request.json["title"],)).fetchone()
    report = row[0] if row else 0
    tasks.build.delay(report)
    return {"report": report}, 201


@bp.get("/reports/<int:report>")
def show(report: int) -> dict[str, Any]:
    row = connection().execute("select title, body from reports where id = %s", (report,)).fetchone()
    return {"title": row and row[0], "body": row and row[1]}


@bp.post("/invoice")
def invoice() -> dict[str, Any]:
    called = tasks.invoice.delay(Decimal("1.10"), DAY)
    value = called.get(timeout=60)
    return {"value": repr(sorted(value.items()))}


@bp.post("/context")
def context() -> dict[str, str]:
    """With every option that a request shows."""
    called = tasks.context.apply_async(
        countdown=request.json["countdown"], priority=3, shadow="shade", headers={"colour": "green"}, time_limit=30, soft_time_limit=20
    )
    return {"task": called.id}


@bp.post("/stubborn/<how>")
def stubborn(how: str) -> dict[str, str]:
    return {"task": tasks.stubborn.delay(f"stubborn {how}", how).id}


@bp.post("/endless")
def endless() -> dict[str, str]:
    return {"task": tasks.endless.delay("endless").id}


@bp.post("/late")
def late() -> dict[str, str]:
    """A call that has expired when a worker gets it."""
    return {"task": tasks.add.apply_async((1, 1), expires=datetime.now(UTC) - timedelta(seconds=5)).id}


@bp.post("/own-id/<task_id>")
def own_id(task_id: str) -> dict[str, str]:
    """An id of the application's own, which is no uuid."""
    return {"task": tasks.add.apply_async((3, 4), task_id=task_id).id}


@bp.delete("/tasks/<task_id>")
def forget(task_id: str) -> dict[str, str]:
    AsyncResult(task_id).forget()
    return {"forgotten": task_id}
