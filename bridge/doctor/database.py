"""Is the database there, and is what is in it ours."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import bridge
from bridge import schema as files
from bridge.doctor.finding import Finding, error, from_exception, ok
from bridge.errors import BridgeError, SchemaError
from bridge.queries import health
from bridge.queries.connection import connect, each_host
from bridge.settings import without_password

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject
    from bridge.settings import Settings

__all__ = ["reachable", "schema"]


def reachable(subject: Subject) -> Finding:
    """Connect, and see whether it can be written to."""
    settings = subject.settings
    subject.connection = connect(settings.require_database(), name="bridge doctor", timeout=settings.timeout)
    server = health.server(subject.connection)
    found = f"Postgres {server.version} answers at {without_password(settings.database_url)}"
    if server.standby:
        return error("database", f"{found}; it is a standby, which takes no writes", "point BRIDGE_DATABASE_URL at the primary")
    if server.read_only:
        return error(
            "database", f"{found}; it takes no writes", "see default_transaction_read_only: a managed server sets it when its disk is full"
        )
    primaries = _primaries(settings)
    if len(primaries) > 1:
        return error(
            "database", f"{' and '.join(primaries)} both take writes: what one is told the other never hears of",
            "shut down the one that was replaced, and make it anew as a standby (docs/high-availability.md)", value=float(len(primaries)),
        )  # fmt: skip
    return ok("database", found)


def _primaries(settings: Settings) -> list[str]:
    """Of several hosts in the address, those that take writes; one that is down is why there are several."""
    hosts = each_host(settings.require_database())
    return [name for name, dsn in hosts.items() if len(hosts) > 1 and _takes_writes(dsn, settings.timeout)]


def _takes_writes(dsn: str, timeout: float) -> bool:
    with suppress(BridgeError):
        connection = connect(dsn, name="bridge doctor", timeout=timeout)
        with connection:
            server = health.server(connection)
        return not (server.standby or server.read_only)
    return False


def schema(subject: Subject) -> Finding:
    """The same comparison that every process makes when it starts."""
    settings = subject.settings
    role = health.shut_out(subject.postgres)
    if role is not None:
        remedy = f"grant bridge_worker to {role}, or bridge_viewer, which is enough to look"
        return error("schema", f"role {role} may not use schema bridge", remedy)
    try:
        installed = files.check(settings.require_database(), timeout=settings.timeout)
    except SchemaError as problem:
        return from_exception("schema", problem)
    subject.schema_fits = True
    if installed != bridge.__version__:
        return ok("schema", f"bridge {installed}, which serves this process of {bridge.__version__}")
    return ok("schema", f"bridge {installed}, as this process")
