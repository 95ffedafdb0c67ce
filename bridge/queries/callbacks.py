"""Callbacks: the rules by which ends of jobs are told, and what a worker that delivers asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.errors import SettingError
from bridge.queries.answers import by_name, records, value
from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["Undelivered", "allowed_hosts", "deliveries", "find", "remove", "set_callback", "try_callback", "undelivered"]


@dataclass(frozen=True, slots=True)
class Undelivered:
    """How many rules there are, and the messages that failed within a day: how many, and where the last went to, with its error."""

    rules: int
    failed: int
    target: str
    error: str


_TYPES = {"events": "text[]", "result": "boolean", "headers": "jsonb"}


def set_callback(connection: Connection, kind: str, named: dict[str, Any]) -> str:
    """Call ``bridge.set_webhook``, ``set_notifier`` or ``set_channel`` with arguments by name; created, changed or unchanged."""
    given = {**named, **({"headers": json.dumps(dict(named["headers"]))} if named.get("headers") is not None else {})}
    return str(value(connection, by_name(f"set_{kind}", given, {**dict.fromkeys(given, "text"), **_TYPES}), given))


def remove(connection: Connection, name: str) -> None:
    """Call ``bridge.remove_callback``."""
    value(connection, "select bridge.remove_callback(%s)", (name,))


def try_callback(connection: Connection, name: str) -> None:
    """Call ``bridge.try_callback``."""
    value(connection, "select bridge.try_callback(%s)", (name,))


def find(connection: Connection) -> list[dict[str, Any]]:
    """All callbacks, by name."""
    return records(connection, "select * from bridge.callbacks order by name")


def deliveries(connection: Connection, callback: str | None, limit: int) -> list[dict[str, Any]]:
    """The last messages, newest first."""
    query = "select * from bridge.deliveries where %s::text is null or callback = %s order by created_at desc limit %s"
    return records(connection, query, (callback, callback, limit))


def allowed_hosts(connection: Connection) -> list[str]:
    """The setting ``webhook_hosts``: patterns of hosts that webhooks may go to; empty means any whose address is public.

    Raises:
        SettingError: it is no list.
    """
    text = value(connection, "select value::text from bridge.setting where name = 'webhook_hosts'")
    found = json.loads(text) if text else []
    if not isinstance(found, list):
        raise SettingError(f"setting webhook_hosts is {found!r}", "give a JSON array of hosts, [] for all whose address is public")
    return [str(host).lower() for host in found]


def undelivered(connection: Connection) -> Undelivered:
    """What the doctor asks: messages that nobody took in all their attempts."""
    query = "select u.rules, u.failed, u.target, u.error from bridge.undelivered() u"
    with translated():
        row = plainly(connection).execute(query.encode()).fetchone()
    return Undelivered(*row) if row else Undelivered(0, 0, "", "")
