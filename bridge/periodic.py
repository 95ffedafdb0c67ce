"""Rows of django-celery-beat as schedules of ours: read as its scheduler reads them, without Django."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.schedules import ParseException, crontab, schedule

from bridge.beat import carried
from bridge.moving.entry import Entry, NotCarriedOverError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["entries"]

_FIELDS = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")


def entries(rows: Iterable[Mapping[str, Any]], app: Any = None, *, timezone: str | None = None) -> list[Entry]:
    """What the rows become, each a task beside its crontab, interval, solar and clocked schedule, of which one is there.

    Args:
        rows: the tables, joined, each as a JSON object.
        app: the application, for its routes and its broker; None when nobody names it.
        timezone: whose clock crontabs are read by; None for that of each.
    """
    if app is not None:
        app.loader.import_default_modules()
        app.finalize()
    return [_entry(row, app, timezone) for row in rows]


def _entry(row: Mapping[str, Any], app: Any, timezone: str | None) -> Entry:
    task = row["task"]
    try:
        zone, when = _when(row)
        values = {
            "task": task["task"], "schedule": when, "options": _options(task), "args": _json(task, "args", list),
            "kwargs": _json(task, "kwargs", dict),
        }  # fmt: skip
    except NotCarriedOverError as refusal:
        return Entry(task["name"], refusal=str(refusal))
    entry = carried(app or Celery("unnamed", set_as_current=False), task["name"], values, timezone or zone)
    if entry.schedule is not None:
        _add_limits(entry, task)
        if app is None:
            _add_doubts(entry, task)
    return entry


def _when(row: Mapping[str, Any]) -> tuple[str, Any]:
    """The time zone and the schedule of Celery that a row means."""
    if row["solar"]:
        raise NotCarriedOverError(f"it follows the sun ({row['solar']['event']}): keep it in beat, or choose a time of day")
    if row["clocked"]:
        raise NotCarriedOverError(_once(row["task"], row["clocked"]["clocked_time"]))
    if row["task"].get("one_off"):
        raise NotCarriedOverError("it runs once (one_off): enqueue its task with run_at")
    if row["crontab"]:
        try:
            return row["crontab"].get("timezone") or "UTC", crontab(**{name: row["crontab"][name] for name in _FIELDS})
        except (ParseException, ValueError) as error:
            text = " ".join(str(row["crontab"][name]) for name in _FIELDS)
            raise NotCarriedOverError(f"its crontab {text} (minute, hour, weekday, day, month) cannot be read: {error}") from error
    if row["interval"]:
        return "UTC", schedule(dt.timedelta(**{row["interval"]["period"]: row["interval"]["every"]}))
    raise NotCarriedOverError("nothing says when it is due")


def _once(task: Mapping[str, Any], moment: str) -> str:
    if not task["enabled"] or dt.datetime.fromisoformat(moment) < dt.datetime.now(dt.UTC):
        return f"it was to run once, at {moment}: that is past, or it is disabled"
    given = ", ".join([*(_literal(task[name]) for name in ("task", "args", "kwargs")), f"run_at => {_literal(moment)}"])
    queue = f", queue => {_literal(task['queue'])}" if task.get("queue") else ""
    return f"it runs once: select bridge.enqueue({given}{queue})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _json(task: Mapping[str, Any], name: str, kind: type) -> Any:
    try:
        found = json.loads(task.get(name) or ("[]" if kind is list else "{}"))
    except ValueError as error:
        raise NotCarriedOverError(f"its {name} are not JSON: {error}") from error
    if not isinstance(found, kind):
        raise NotCarriedOverError(f"its {name} are no JSON {'array' if kind is list else 'object'}: {task[name]}")
    return found


def _options(task: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: task.get(name) for name in ("queue", "exchange", "routing_key", "priority")}
    given |= {"expires": task.get("expire_seconds"), "headers": _json(task, "headers", dict)}
    return {name: value for name, value in given.items() if value not in (None, "", {})}


def _add_limits(entry: Entry, task: Mapping[str, Any]) -> None:
    """When it begins and ends, and whether it is switched on."""
    given = entry.schedule
    assert given is not None  # noqa: S101 - the caller has looked
    for ours, theirs in (("starts_at", "start_time"), ("ends_at", "expires")):
        if task.get(theirs):
            given[ours] = dt.datetime.fromisoformat(task[theirs])
    if "ends_at" in given and given["ends_at"] <= dt.datetime.now(dt.UTC):
        entry.schedule, entry.refusal = None, f"it ended at {task['expires']} (expires)"
    elif not task["enabled"]:
        given["enabled"] = False
        entry.notes.append("it is disabled: the schedule is made as paused")
    if task.get("description"):
        entry.notes.append("its description is left behind")


def _add_doubts(entry: Entry, task: Mapping[str, Any]) -> None:
    """What only the application can tell."""
    entry.notes = [note for note in entry.notes if note != "the application does not know this task"]
    if not task.get("queue"):
        entry.notes.append("in the queue celery: -A APP has it routed as the application does")
    if task.get("priority"):
        entry.notes.append("its priority is meant as RabbitMQ takes it: -A APP tells which broker it is")
