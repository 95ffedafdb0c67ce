"""Making and steering schedules from Python: rows that the tick makes jobs of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval, mapping, require_json_of, several
from bridge.client import connection_of
from bridge.queries import jobs, schedules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

__all__ = ["next_runs", "pause_schedule", "resume_schedule", "run_schedule", "schedule", "unschedule"]


def schedule(
    name: str,
    cron: str,
    task: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
    timezone: str = "UTC",
    queue: str = "celery",
    priority: int = 0,
    max_attempts: int | None = None,
    jitter: float | timedelta = 0.0,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    overlap: str = "allow",
    missed: str = "once",
    missed_within: float | timedelta = 604800.0,
    **options: Any,
) -> str:
    """Make a schedule, or give the one of this name these values; saying the same again changes nothing.

    Args:
        name: its name.
        cron: five fields (``0 6 * * mon-fri``), ``@hourly`` and its like, or an interval (``every 15 minutes``).
        task: registered name of the Celery task that each job runs; one of task, function and webhook is given.
        args: positional arguments; JSON values.
        kwargs: keyword arguments; JSON values.
        connection: whose transaction to join, as for ``enqueue``: without it, the one that the call stands in.
        timezone: whose clock cron is read by, ``Europe/Berlin``.
        queue: the Celery queue of its jobs.
        priority: 0 to 9, higher is sooner.
        max_attempts: how often a job may fail before it is failed; None as for ``enqueue``.
        jitter: seconds; each job is due up to so much later than its slot, by chance.
        starts_at: no slot before; intervals are counted from it.
        ends_at: no slot after.
        overlap: while a run before has not ended: "allow", "skip" this one, "queue_one" (it waits), "cancel_old".
        missed: slots that passed while nothing ticked: "skip", "once" (the last of them), "all".
        missed_within: seconds; how long ago a missed slot may be to be made up for.
        options: ``backoff``, ``timeout`` (seconds) and ``headers`` of each job, as for ``enqueue``; ``expires`` (seconds after it
            was due by which a job must have started); ``expected_duration`` (seconds; a run that takes longer is slow, without it
            its own runs tell what is usual); ``enabled`` (without it a pause stays as it is). Instead of a task: ``function``, one of
            the database with its schema, ``public.reset``, or its signature: it is called with args and kwargs and the rights of the
            role that says so, and needs no worker; or ``webhook``, an address that schedule and slot are posted to, or
            ``{"url": …, "secret": …}``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work; of cron it says from which character on.
        ConflictError: a schedule exists whose name differs in case or blanks alone.
        TypeError: an option is none of these.
    """
    given: dict[str, Any] = {"args": several("args", args), "kwargs": mapping("kwargs", kwargs)}
    given |= {name: options.get(name) for name in ("backoff", "headers", "webhook")}
    require_json_of(f"schedule {name}" if task is None else f"task {task}", given)
    named = {
        "name": name, "cron": cron, "task": task, "args": jobs.jsonb(given["args"]), "kwargs": jobs.jsonb(given["kwargs"]),
        "timezone": timezone, "queue": queue, "priority": priority, "max_attempts": max_attempts, "jitter": interval(jitter),
        "starts_at": starts_at, "ends_at": ends_at, "overlap": overlap, "missed": missed, "missed_within": interval(missed_within),
        **_further(options),
    }  # fmt: skip
    return schedules.schedule(connection_of(connection), named)


def _further(options: dict[str, Any]) -> dict[str, Any]:
    unknown = set(options) - {"backoff", "timeout", "headers", "expires", "enabled", "expected_duration", "function", "webhook"}
    if unknown:
        raise TypeError(f"schedule() got an unexpected keyword argument {min(unknown)!r}")
    return {name: _value(name, value) for name, value in options.items()}


def _value(name: str, value: Any) -> Any:
    if name in {"timeout", "expires", "expected_duration"}:
        return interval(value)
    return jobs.jsonb(value) if name in {"backoff", "headers", "webhook"} and value is not None else value


def unschedule(name: str, *, connection: Any = None) -> bool:
    """Remove a schedule; jobs that it made go on, the log of its runs stays.

    Returns:
        False when there was none of this name.
    """
    return schedules.unschedule(connection_of(connection), name)


def run_schedule(name: str, *, connection: Any = None) -> UUID:
    """Run a schedule now, whatever its time, also while it is paused; its slots stay as they are.

    Returns:
        The job's id.

    Raises:
        NotFoundError: there is no such schedule.
        WrongStateError: a run of it has not ended, and its overlap is not "allow".
    """
    return schedules.run(connection_of(connection), name)


def pause_schedule(name: str, *, connection: Any = None) -> None:
    """Let a schedule make no jobs until it is resumed.

    Raises:
        NotFoundError: there is no such schedule.
    """
    schedules.pause(connection_of(connection), name)


def resume_schedule(name: str, *, connection: Any = None) -> datetime | None:
    """End a pause; slots that fell into it do not run.

    Returns:
        When it runs next; None when it has ended.

    Raises:
        NotFoundError: there is no such schedule.
    """
    return schedules.resume(connection_of(connection), name)


def next_runs(cron: str, timezone: str = "UTC", n: int = 5, after: datetime | None = None, *, connection: Any = None) -> list[datetime]:
    """Preview: the next moments at which an expression is due.

    Args:
        cron: as for ``schedule``.
        timezone: whose clock it is read by.
        n: how many, 1 to 1000.
        after: from when on; None is now.
        connection: the database to ask.

    Raises:
        InvalidArgumentError: the expression or the zone cannot be read.
    """
    return schedules.next_runs(connection_of(connection), cron, timezone, n, after)
