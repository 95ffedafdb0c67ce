"""Which release the schema in a database is of, and whether it serves this process."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

import bridge
from bridge.errors import SchemaError, ServerError
from bridge.session import Session
from bridge.settings import without_password

__all__ = ["check", "connect", "installed_version", "numbers"]


@dataclass(frozen=True, slots=True)
class _Installed:
    """The release of a schema, and the oldest one whose processes it still serves."""

    version: str
    serves_from: str


def installed_version(dsn: str, *, timeout: float = 10.0) -> str | None:
    """The version of the installed schema; None when there is none."""
    found = _installed(dsn, timeout)
    return found.version if found else None


def check(dsn: str, *, timeout: float = 10.0) -> str:
    """Refuse to go on with a schema that does not serve this process.

    A newer schema serves processes of some releases before it, so that old and new ones work side by side during an upgrade; which, it
    says itself (``bridge.serves_from``). An older schema lacks what this process calls.

    Returns:
        The version of the schema.

    Raises:
        SchemaError: it is missing, older, or too new, with what to do.
    """
    found = _installed(dsn, timeout)
    if found is None:
        raise SchemaError(f"no schema bridge in {without_password(dsn)}", 'run "bridge install"')
    if numbers(found.version) < numbers(bridge.__version__):
        raise SchemaError(f"schema is at {found.version}, this process needs {bridge.__version__}", 'run "bridge install" (safe to repeat)')
    if numbers(found.serves_from) > numbers(bridge.__version__):
        raise SchemaError(
            f"schema is at {found.version}, which serves processes from {found.serves_from} on, this process is {bridge.__version__}",
            "upgrade this process",
        )
    return found.version


def _installed(dsn: str, timeout: float) -> _Installed | None:
    with connect(dsn, timeout) as connection:
        connection.patience = timeout
        try:
            row = connection.execute("select to_regprocedure('bridge.version()'), to_regprocedure('bridge.serves_from()')").fetchone()
            if row is None or row[0] is None:
                return None
            # A schema from before releases said so serves its own alone.
            oldest = "serves_from" if row[1] else "version"
            found = connection.execute(f"select bridge.version(), bridge.{oldest}()".encode()).fetchone()
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"role {connection.info.user} may not use schema bridge", "grant it bridge_producer or bridge_worker"
            ) from error
        except psycopg.OperationalError as error:
            raise _unreachable(dsn, error) from error
        return _Installed(*found) if found else None


def numbers(version: str) -> tuple[int, ...]:
    """A version in the order of versions."""
    return tuple(int(part) for part in version.split("."))


def connect(dsn: str, timeout: float) -> Session:
    """Connect for looking at the schema or changing it.

    Raises:
        ServerError: the database cannot be reached.
    """
    try:
        return Session.connect(dsn, autocommit=True, connect_timeout=max(1, round(timeout)), application_name="bridge install")
    except psycopg.OperationalError as error:
        raise _unreachable(dsn, error) from error


def _unreachable(dsn: str, error: Exception) -> ServerError:
    return ServerError(f"cannot reach {without_password(dsn)}: {str(error).strip()}", "check BRIDGE_DATABASE_URL and that Postgres runs")
