"""What an application's beat schedule would be as schedules of ours: entry by entry, with what cannot be carried over and why."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from celery.app.task import extract_exec_options
from celery.app.utils import find_app
from celery.schedules import crontab, maybe_schedule, solar
from celery.schedules import schedule as every

from bridge.errors import InvalidArgumentError
from bridge.moving.entry import Entry, NotCarriedOverError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Entry", "application", "carried", "entries"]

# Options without which a task would do something else, and those that speak of the moment of sending alone.
_ESSENTIAL = ("chain", "chord", "countdown", "eta", "group", "link", "link_error", "task_id")
_OF_SENDING = {"bridge", "delivery_mode", "immediate", "mandatory", "periodic_task_name", "producer", "retry", "retry_policy"}
_CARRIED = {"expires", "headers", "priority", "queue", "time_limit"}
_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def application(name: str) -> Any:
    """The Celery application of this name, as ``celery -A`` finds it.

    Raises:
        InvalidArgumentError: there is none.
    """
    try:
        return find_app(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise InvalidArgumentError(f"no Celery application {name}: {error}", "give it as celery -A takes it") from error


def entries(app: Any, *, timezone: str | None = None) -> list[Entry]:
    """The entries of an application's ``beat_schedule``, those of ``add_periodic_task`` among them.

    Args:
        app: the application; its task modules are imported.
        timezone: whose clock crontabs are read by; None for the application's own.
    """
    app.loader.import_default_modules()
    app.finalize()
    return [carried(app, str(name), values, timezone) for name, values in app.conf.beat_schedule.items()]


def carried(app: Any, name: str, values: Mapping[str, Any], timezone: str | None) -> Entry:
    """What one entry becomes, given as ``beat_schedule`` has it."""
    entry = Entry(name)
    args, kwargs, task = list(values.get("args") or ()), dict(values.get("kwargs") or {}), str(values["task"])
    try:
        cron, zone = _timing(app, values, timezone, entry.notes)
        _require_json("args and kwargs", [args, kwargs])
        options = _options(app, task, values.get("options") or {}, entry.notes)
    except NotCarriedOverError as refusal:
        entry.refusal = str(refusal)
        return entry
    # One attempt, as a Celery call: its retries are the task's own business.
    entry.schedule = {
        "cron": cron, "timezone": zone, "task": task, "args": args, "kwargs": kwargs, "max_attempts": 1,
        "queue": _queue(app, task, args, kwargs, values.get("options") or {}), **options,
    }  # fmt: skip
    return entry


def _timing(app: Any, values: Mapping[str, Any], timezone: str | None, notes: list[str]) -> tuple[str, str]:
    relative = bool(values.get("relative"))
    when = maybe_schedule(values["schedule"], relative, app=app)
    if isinstance(when, solar):
        raise NotCarriedOverError(f"it follows the sun ({when.event}): keep it in beat, or choose a time of day")
    if isinstance(when, crontab):
        return crontab_text(when), timezone or _zone(when)
    if type(when) is every:
        if not (relative or when.relative):
            notes.append("counted from the clock, not from when beat started")
        return _interval_text(when.run_every.total_seconds()), "UTC"
    raise NotCarriedOverError(f"its schedule is of class {type(when).__name__}, which only beat can read")


def crontab_text(when: Any) -> str:
    """A crontab of Celery as five fields. Where it restricts the day of the month and of the week, both must match, which & says."""
    day, weekday = (
        _field(when._orig_day_of_month, when.day_of_month, 1, 31),  # noqa: SLF001 - the only place where its words are kept
        _field(when._orig_day_of_week, when.day_of_week, 0, 6),  # noqa: SLF001
    )
    times = [_field(when._orig_minute, when.minute, 0, 59), _field(when._orig_hour, when.hour, 0, 23)]  # noqa: SLF001
    both = "&" if day != "*" and weekday != "*" else ""
    return " ".join([*times, day, _field(when._orig_month_of_year, when.month_of_year, 1, 12), f"{both}{weekday}"])  # noqa: SLF001


def _field(words: object, numbers: set[int], low: int, high: int) -> str:
    ordered = sorted(numbers)
    if len(ordered) == high - low + 1:
        return "*"
    step = ordered[1] - ordered[0] if len(ordered) > 1 else high
    if str(words).startswith("*/") and ordered == list(range(low, high + 1, step)):
        return f"*/{step}"
    starts = [number for number in ordered if number - 1 not in numbers]
    ends = [number for number in ordered if number + 1 not in numbers]
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _zone(when: Any) -> str:
    if type(when) is crontab and when.nowfun is not None:
        raise NotCarriedOverError("it goes by a clock of its own (nowfun)")
    zone = when.tz
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if name is None and zone == dt.UTC:
        return "UTC"
    if name is None:
        raise NotCarriedOverError(
            f"its time zone {zone} has no name in the tz database: give --timezone, or set timezone in the application"
        )
    return str(name)


def _interval_text(seconds: float) -> str:
    if seconds < 1 or seconds != int(seconds):
        raise NotCarriedOverError(f"its interval is {seconds:g} s: ours are whole seconds, 1 or more")
    unit, length = next((unit, length) for unit, length in _UNITS if seconds % length == 0)
    return f"every {int(seconds) // length} {unit}"


def _options(app: Any, task: str, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """What of a call's options becomes part of the schedule; those of the task itself are at work behind the entry's."""
    essential = [name for name in _ESSENTIAL if given.get(name)]
    if essential:
        raise NotCarriedOverError(f"its option {essential[0]} has no place in a schedule: make it part of the task")
    registered = app.tasks.get(task)
    own = {} if registered is None else {name: value for name, value in extract_exec_options(registered).items() if value is not None}
    if registered is None:
        notes.append("the application does not know this task")
    left = sorted(name for name, value in given.items() if value is not None and name not in _CARRIED | _OF_SENDING)
    notes.extend(f"option {name} is left behind" for name in left if (name, given[name]) != ("serializer", "json"))
    options = {name: given[name] if name in given else own.get(name) for name in ("expires", "priority")}
    found = {
        "priority": _priority(app, options["priority"], notes), "expires": _expires(options["expires"]),
        "timeout": given.get("time_limit"), "headers": given.get("headers"),
    }  # fmt: skip
    _require_json("headers", found["headers"])
    return {name: value for name, value in found.items() if value is not None}


def _priority(app: Any, given: int | None, notes: list[str]) -> int:
    if not given:
        return 0
    if app.connection_for_write().transport.driver_type == "amqp":
        return min(given, 9)
    notes.append(f"priority {given} means later than others on this broker: it becomes 0")
    return 0


def _expires(given: Any) -> float | None:
    if isinstance(given, dt.datetime | str):
        raise NotCarriedOverError("its option expires is a moment, not a duration: give the schedule an ends_at")
    return given.total_seconds() if isinstance(given, dt.timedelta) else given


def _queue(app: Any, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    registered = app.tasks.get(task)
    own = {} if registered is None else extract_exec_options(registered)
    options = {
        name: value for name, value in {**own, **given}.items() if name in {"queue", "exchange", "routing_key"} and value is not None
    }
    queue = app.amqp.router.route(options, task, args, dict(kwargs)).get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def _require_json(what: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise NotCarriedOverError(f"its {what} are not JSON: {error}") from error
