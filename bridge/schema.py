"""The SQL files: where they are, installing them, and whether the installed ones fit this process."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

import bridge
from bridge.errors import SchemaError, ServerError, from_sqlstate
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["announce", "apply", "check", "files", "install", "install_pipeline", "installed_version", "script"]

# Whether pg_cron's launcher has read its table since a moment; unknown to roles that may not see its state.
_HEARD = "select bool_and(state_change > %s) from pg_stat_activity where backend_type = 'pg_cron launcher'"
_HEARD_EVERY, _HEARD_TRIES = 0.25, 12  # seconds, and how often: the launcher looks once a second
_LOCK = "select pg_advisory_xact_lock(hashtextextended('bridge.install', 0))"


@dataclass(frozen=True, slots=True)
class _Installed:
    """The release of a schema, and the oldest one whose processes it still serves."""

    version: str
    serves_from: str


def files() -> Iterator[tuple[str, str]]:
    """The name and text of each SQL file, in the order in which they are applied.

    Raises:
        SchemaError: they came neither with the package nor with a checkout.
    """
    packaged = resources.files("bridge").joinpath("sql")
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "sql"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    if not found:
        raise SchemaError("the SQL files of the bridge are not where its package is", "install the package again")
    for entry in found:
        yield entry.name, entry.read_text(encoding="utf-8")


def script() -> str:
    """All SQL files as one text, as ``bridge sql`` prints it and migrations of other tools run it."""
    return "\n".join(f"-- {name}\n{text}" for name, text in files())


def install(dsn: str, *, timeout: float = 10.0) -> str:
    """Install or upgrade the schema, in one transaction, one installer at a time; repeating it changes nothing.

    Args:
        dsn: the database, as libpq takes it.
        timeout: seconds to wait for a connection.

    Returns:
        One sentence: the version, and what drives the tick.

    Raises:
        ServerError: the database cannot be reached.
        SchemaError: the database holds a newer release.
    """
    with _connect(dsn, timeout) as connection:
        with connection.transaction():
            ticks = apply(connection)
        announce(connection)
    return f"schema bridge {bridge.__version__} is installed; {ticks}"


def apply(connection: psycopg.Connection) -> str:
    """Install or upgrade the schema in a connection's open transaction, for migrations of other tools; ``announce`` follows its commit.

    Returns:
        What drives the tick.

    Raises:
        SchemaError: the database holds a newer release.
    """
    try:
        connection.execute(_LOCK)
        connection.execute(script().encode())
        row = connection.execute("select bridge.register_cron()").fetchone()
    except psycopg.Error as error:
        raise (from_sqlstate(error.sqlstate, error.diag.message_primary or "", error.diag.message_hint) or error) from error
    return str(row[0]) if row else ""


def install_pipeline(dsn: str, folder: Path, *, timeout: float = 10.0) -> int:
    """Apply the SQL files of one pipeline's folder in name order, in one transaction; the bridge's own schema comes first.

    Returns:
        How many files there were.

    Raises:
        SchemaError: the folder holds no SQL, or the bridge is not installed.
        ServerError: the database cannot be reached.
    """
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.sql"))]
    if not texts:
        raise SchemaError(f"no SQL files in {folder}", "name a pipeline of the checkout you stand in, for example media")
    check(dsn, timeout=timeout)
    with _connect(dsn, timeout) as connection:
        with connection.transaction():
            for text in texts:
                connection.execute(text.encode())
        with suppress(psycopg.errors.InsufficientPrivilege):  # a pipeline may belong to another role than the bridge
            announce(connection)
    return len(texts)


def announce(connection: psycopg.Connection) -> None:
    """Repeat to pg_cron what it may have missed, until it has read its table (see bridge.announce_cron)."""
    since = connection.execute("select clock_timestamp()").fetchone()
    for _ in range(_HEARD_TRIES):
        announced = connection.execute("select bridge.announce_cron()").fetchone()
        heard = connection.execute(_HEARD, since).fetchone()
        if announced == (0,) or heard == (True,):
            break
        time.sleep(_HEARD_EVERY)


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
    if _numbers(found.version) < _numbers(bridge.__version__):
        raise SchemaError(f"schema is at {found.version}, this process needs {bridge.__version__}", 'run "bridge install" (safe to repeat)')
    if _numbers(found.serves_from) > _numbers(bridge.__version__):
        raise SchemaError(
            f"schema is at {found.version}, which serves processes from {found.serves_from} on, this process is {bridge.__version__}",
            "upgrade this process",
        )
    return found.version


def _installed(dsn: str, timeout: float) -> _Installed | None:
    with _connect(dsn, timeout) as connection:
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
        return _Installed(*found) if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _connect(dsn: str, timeout: float) -> psycopg.Connection:
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=max(1, round(timeout)), application_name="bridge install")
    except psycopg.OperationalError as error:
        raise ServerError(
            f"cannot reach {without_password(dsn)}: {str(error).strip()}", "check BRIDGE_DATABASE_URL and that Postgres runs"
        ) from error
