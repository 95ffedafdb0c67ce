"""Health, alerts and snapshots of metrics: what watches over jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries.answers import by_name, records, value

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = [
    "acknowledge_alert", "alert_rules", "alerts", "check_alerts", "collect_metrics", "health", "remove_alert", "resolve_alert", "set_alert",
    "test_alert", "watch_alerts",
]  # fmt: skip

_TYPES = {"threshold": "numeric", "minimum": "integer", "enabled": "boolean", **dict.fromkeys(["within", "lasting", "quiet"], "interval")}


def health(connection: Connection) -> list[dict[str, Any]]:
    """All rows of ``bridge.health``, in its order."""
    return records(connection, "select * from bridge.health()")


def set_alert(connection: Connection, named: dict[str, Any]) -> str:
    """Call ``bridge.set_alert`` with arguments by name; created, changed or unchanged."""
    return str(value(connection, by_name("set_alert", named, {**dict.fromkeys(named, "text"), **_TYPES}), named))


def remove_alert(connection: Connection, name: str) -> None:
    """Call ``bridge.remove_alert``."""
    value(connection, "select bridge.remove_alert(%s)", (name,))


def test_alert(connection: Connection, name: str) -> None:
    """Call ``bridge.test_alert``."""
    value(connection, "select bridge.test_alert(%s)", (name,))


def has_address(connection: Connection, name: str) -> bool:
    """Whether this rule, or a setting for all rules, says whom to tell; the rule must be there."""
    return bool(
        value(
            connection,
            """
            select coalesce(r.webhook, r.notifier) is not null or exists (select from bridge.setting s
              where s.name in ('alert_webhook', 'alert_notifier') and jsonb_typeof(s.value) = 'string' and s.value <> '""')
            from bridge.alert_rules r where r.name = %s
            """,
            (name,),
        )
    )


def check_alerts(connection: Connection) -> dict[str, int] | None:
    """Call ``bridge.check_alerts``; None when somebody else is at it."""
    return value(connection, "select bridge.check_alerts()")  # type: ignore[no-any-return]


def acknowledge_alert(connection: Connection, identity: int, who: str | None, note: str | None) -> bool:
    """Call ``bridge.acknowledge_alert``; False when it was acknowledged already."""
    return bool(
        value(connection, "select bridge.acknowledge_alert(%s::bigint, coalesce(%s::text, session_user), %s::text)", (identity, who, note))
    )


def resolve_alert(connection: Connection, identity: int, who: str | None, note: str | None) -> None:
    """Call ``bridge.resolve_alert``."""
    value(connection, "select bridge.resolve_alert(%s::bigint, coalesce(%s::text, session_user), %s::text)", (identity, who, note))


def alert_rules(connection: Connection) -> list[dict[str, Any]]:
    """All rows of the view ``bridge.alert_rules``, by name."""
    return records(connection, "select * from bridge.alert_rules order by name")


def alerts(connection: Connection, states: list[str] | None, rule: str | None, limit: int) -> list[dict[str, Any]]:
    """The last rows of the view ``bridge.alerts``, newest first; ``states`` and ``rule`` None for all."""
    query = """
        select * from bridge.alerts where (%(states)s::text[] is null or state = any (%(states)s::text[]))
          and (%(rule)s::text is null or rule = %(rule)s::text)
        order by id desc limit %(limit)s"""
    return records(connection, query, {"states": states, "rule": rule, "limit": limit})


def watch_alerts(connection: Connection) -> list[dict[str, Any]]:
    """Call ``bridge.watch_alerts``: what was told of within the last minute."""
    return records(connection, "select * from bridge.watch_alerts()")


def collect_metrics(connection: Connection) -> int | None:
    """Call ``bridge.collect_metrics``; how many values were kept, None when somebody else is at it."""
    return value(connection, "select bridge.collect_metrics()")  # type: ignore[no-any-return]
