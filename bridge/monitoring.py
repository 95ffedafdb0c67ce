"""Health and alerts from Python: is all well, who is told when it is not, and who is at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import interval, several
from bridge.client import connection_of
from bridge.queries import monitoring as queries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

__all__ = [
    "acknowledge_alert", "alert_rules", "alerts", "check_alerts", "collect_metrics", "health", "remove_alert", "resolve_alert", "set_alert",
    "test_alert",
]  # fmt: skip

_DURATIONS = ("within", "lasting", "quiet")


def health(*, connection: Any = None) -> list[dict[str, Any]]:
    """The state of everything that jobs need, one row a component, as ``bridge.health()`` in SQL has it.

    Returns:
        Rows of component, subject, status ("healthy"; "degraded": jobs still run; "failing": a person must act; "inactive": not in
        use), found, remedy, last_run, next_run, error_count, success_rate and value.
    """
    return queries.health(connection_of(connection))


def set_alert(
    name: str,
    kind: str | None = None,
    threshold: float | None = None,
    *,
    queue: str | None = None,
    task: str | None = None,
    within: float | timedelta | None = None,
    lasting: float | timedelta | None = None,
    severity: str | None = None,
    quiet: float | timedelta | None = None,
    minimum: int | None = None,
    webhook: str | None = None,
    notifier: str | None = None,
    secret: str | None = None,
    delivery_queue: str | None = None,
    enabled: bool | None = None,
    connection: Any = None,
) -> str:
    """Make an alert rule, or change what is said of the one that has this name; what is not said stays, or has the default of its kind.

    Args:
        name: of the rule; the rules that are installed have the name of their kind.
        kind: what it watches, "queued_jobs" for one; without it the name says it.
        threshold: it fires above it; "no_worker" and "no_drainer" below it.
        queue: only of this queue; "" of all again.
        task: only of this task; "" of all again.
        within: seconds that it looks back, or that a job may wait.
        lasting: seconds that the condition must hold before it fires.
        severity: "info", "warning" or "critical".
        quiet: seconds in which at most one message is sent; so long after it was acknowledged, too, it is silent.
        minimum: of a failure rate: of at least so many attempts.
        webhook: address that it is posted to; "" the setting ``alert_webhook`` again.
        notifier: name of a notifier, as for ``set_notifier``; "" the setting ``alert_notifier`` again.
        secret: name of the secret that signs the webhook.
        delivery_queue: queue of the jobs that deliver; "" one that has a worker.
        enabled: False: it is not looked at, and what is open of it is resolved.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    named = {
        "name": name, "kind": kind, "threshold": threshold, "queue": queue, "task": task, "within": within, "lasting": lasting,
        "severity": severity, "quiet": quiet, "minimum": minimum, "webhook": webhook, "notifier": notifier, "secret": secret,
        "delivery_queue": delivery_queue, "enabled": enabled,
    }  # fmt: skip
    given = {key: interval(value) if key in _DURATIONS else value for key, value in named.items() if value is not None}  # type: ignore[arg-type]
    return queries.set_alert(connection_of(connection), given)


def remove_alert(name: str, *, connection: Any = None) -> None:
    """Remove an alert rule. What is open of it is resolved; its history stays.

    Raises:
        NotFoundError: there is none of that name.
    """
    queries.remove_alert(connection_of(connection), name)


def check_alerts(*, connection: Any = None) -> dict[str, int] | None:
    """Look at all alert rules now, as the tick does.

    Returns:
        How many were opened, and how many are unresolved; None when somebody else is at it.
    """
    return queries.check_alerts(connection_of(connection))


def acknowledge_alert(identity: int, who: str | None = None, note: str | None = None, *, connection: Any = None) -> bool:
    """Say that somebody is at it: nothing more is told of the alert for its rule's quiet time.

    Args:
        identity: the alert's ``id``.
        who: shown in the list of alerts; None for the role of the database.
        note: as ``who``.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        False when it was acknowledged already.

    Raises:
        NotFoundError: there is no such alert.
        WrongStateError: it is resolved.
    """
    return queries.acknowledge_alert(connection_of(connection), identity, who, note)


def resolve_alert(identity: int, who: str | None = None, note: str | None = None, *, connection: Any = None) -> None:
    """End an alert by hand. Where its condition still holds, the next look opens another.

    Args:
        identity: as for ``acknowledge_alert``.
        who: as for ``acknowledge_alert``.
        note: as for ``acknowledge_alert``.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        NotFoundError: there is no such alert.
        WrongStateError: it is resolved already.
    """
    queries.resolve_alert(connection_of(connection), identity, who, note)


def test_alert(name: str, *, connection: Any = None) -> None:  # noqa: PT028 - it is no test
    """Tell of something that did not happen, as a rule would, to see whether it arrives. No alert is opened.

    Raises:
        NotFoundError: there is no rule of that name.
    """
    queries.test_alert(connection_of(connection), name)


def alert_rules(*, connection: Any = None) -> list[dict[str, Any]]:
    """All alert rules, as the view ``bridge.alert_rules`` has them."""
    return queries.alert_rules(connection_of(connection))


def alerts(
    states: Sequence[str] | None = ("open", "acknowledged"), *, rule: str | None = None, limit: int = 100, connection: Any = None
) -> list[dict[str, Any]]:
    """Alerts, the newest first, as the view ``bridge.alerts`` has them.

    Args:
        states: of "open", "acknowledged", "resolved"; None for all.
        rule: only of this rule.
        limit: at most so many.
        connection: whose transaction to join, as for ``enqueue``.
    """
    return queries.alerts(connection_of(connection), None if states is None else several("states", states), rule, limit)


def collect_metrics(*, connection: Any = None) -> int | None:
    """Keep what ``bridge.metrics()`` says now, as the tick does each ``metric_interval``.

    Returns:
        How many values were kept; None when somebody else is at it.
    """
    return queries.collect_metrics(connection_of(connection))
