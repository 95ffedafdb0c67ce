"""Secrets in the vault, and what a request is sent with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries.answers import value

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["headers_of_callback", "read"]


def read(connection: Connection, name: str) -> str:
    """Call ``bridge.secret``."""
    return str(value(connection, "select bridge.secret(%s)", (name,)))


def headers_of_callback(connection: Connection, name: str, url: str) -> dict[str, Any]:
    """Further headers of this callback, or schedule, references for secrets; none unless it still posts to this address."""
    query = """
        select headers from bridge.callbacks where name = %(name)s and kind = 'webhook' and target = %(url)s
        union all
        select webhook->'headers' from bridge.schedules where 'schedule ' || name = %(name)s and webhook->>'url' = %(url)s limit 1"""
    return dict(value(connection, query, {"name": name, "url": url}) or {})
