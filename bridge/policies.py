"""Retry policies from Python: what jobs of a task or of a queue do when they fail, where they do not say it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import classes, interval, require_json_of
from bridge.client import connection_of
from bridge.queries import jobs, policies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

__all__ = ["remove_retry", "retry_policies", "set_retry"]


def set_retry(
    task: str | None = None,
    queue: str | None = None,
    *,
    connection: Any = None,
    max_attempts: int | None = None,
    backoff: float | Sequence[float] | Mapping[str, float] | None = None,
    retry_on: Sequence[str | type[BaseException]] | None = None,
    never_on: Sequence[str | type[BaseException]] | None = None,
    timeout: float | timedelta | None = None,
    soft_timeout: float | timedelta | None = None,
    deadline: float | timedelta | None = None,
) -> str:
    """Make the retry policy of a task or of a queue, or give the one that is there these values; what is None is not said by it.

    A job's own word comes first, then its task's policy, then its queue's, then the defaults, rule by rule. A policy is looked up when it
    is needed, so that it counts for jobs that wait already, Celery calls among them.

    Args:
        task: whose policy; this or ``queue``.
        queue: whose policy; this or ``task``.
        connection: whose transaction to join, as for ``enqueue``.
        max_attempts: how often a job may fail before it is failed; 1 = no retry.
        backoff: wait between attempts: seconds, a list of seconds, or a mapping of base, factor, cap and jitter.
        retry_on: classes of errors, or their names: further attempts only after these, or what derives from them.
        never_on: no further attempt after these.
        timeout: seconds, or a timedelta: hard limit of one attempt.
        soft_timeout: seconds, or a timedelta: soft limit of one attempt.
        deadline: seconds, or a timedelta, from when a job is due: no attempt starts later, and one that still runs is stopped.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: neither or both of ``task`` and ``queue``, or an argument that can never work.
    """
    require_json_of("the retry policy", {"backoff": backoff})
    named = {
        "task": task, "queue": queue, "max_attempts": max_attempts, "backoff": None if backoff is None else jobs.jsonb(backoff),
        "retry_on": classes("retry_on", retry_on), "never_on": classes("never_on", never_on), "timeout": interval(timeout),
        "soft_timeout": interval(soft_timeout), "deadline": interval(deadline),
    }  # fmt: skip
    return policies.set_retry(connection_of(connection), named)


def remove_retry(task: str | None = None, queue: str | None = None, *, connection: Any = None) -> bool:
    """Remove the retry policy of a task or of a queue.

    Returns:
        False when there was none.

    Raises:
        InvalidArgumentError: neither or both are given.
    """
    return policies.remove_retry(connection_of(connection), task, queue)


def retry_policies(*, connection: Any = None) -> list[dict[str, Any]]:
    """All retry policies, as the view ``bridge.retry_policies`` has them: what one does not say is None."""
    return policies.policies(connection_of(connection))
