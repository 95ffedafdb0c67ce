"""Tenants: turning them on and off, and who has jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from bridge.queries.answers import records, value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import datetime

    from bridge.queries.connection import Connection

__all__ = ["Tenancy", "Tenant", "disable", "enable", "tenancy", "tenants"]


@dataclass(frozen=True, slots=True)
class Tenancy:
    """How a session says whose request it serves.

    Attributes:
        claim: the setting, or ``role``.
        key: where in its JSON; None: it is no JSON.
        enabled_at: since when.
    """

    claim: str
    key: str | None
    enabled_at: datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that has jobs.

    Attributes:
        tenant: its name.
        live: jobs that have not ended.
        ended: jobs that have, as far as history goes.
    """

    tenant: str
    live: int
    ended: int


def enable(connection: Connection, claim: str, key: str | None) -> None:
    """Call ``bridge.enable_tenants``."""
    value(connection, "select bridge.enable_tenants(%s, %s)", (claim, key))


def disable(connection: Connection) -> bool:
    """Call ``bridge.disable_tenants``; False when they were off."""
    return bool(value(connection, "select bridge.disable_tenants()"))


def tenancy(connection: Connection) -> Tenancy | None:
    """What ``bridge.enable_tenants`` was told; None while tenants are off."""
    found = records(connection, "select claim, key, enabled_at from bridge.tenancy")
    return Tenancy(**found[0]) if found else None


def tenants(connection: Connection) -> list[Tenant]:
    """All rows of the view ``bridge.tenants``."""
    with translated(), connection.cursor(row_factory=class_row(Tenant)) as cursor:
        return cursor.execute("select tenant, live::bigint, ended::bigint from bridge.tenants order by tenant").fetchall()
