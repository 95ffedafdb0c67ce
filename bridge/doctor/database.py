"""Is the database there, and is what is in it ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bridge
from bridge import schema as files
from bridge.doctor.finding import Finding, error, from_exception, ok
from bridge.errors import SchemaError
from bridge.queries import health
from bridge.queries.connection import connect
from bridge.settings import without_password

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

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
    return ok("database", found)


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
