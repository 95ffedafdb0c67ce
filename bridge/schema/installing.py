"""Installing and upgrading the schema, beside traffic that goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

import bridge
from bridge.errors import LockedError, SchemaError, from_sqlstate
from bridge.schema.cron import register_elsewhere, until_heard
from bridge.schema.files import script
from bridge.schema.version import check, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["announce", "apply", "install", "install_pipeline", "lock"]

_LOCK = "select pg_advisory_xact_lock(hashtextextended('bridge.install', 0))"
_IN_THE_WAY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
_LONGEST_PAUSE = 5.0  # seconds between two tries, in which traffic that waited goes on
# The oldest transaction that holds something of ours; its query is not shown, it may carry secrets.
_HOLDER = """
    select a.pid, a.application_name, a.usename, a.state, extract(epoch from clock_timestamp() - a.xact_start)::integer
    from pg_locks l join pg_class c on c.oid = l.relation and c.relnamespace = to_regnamespace('bridge') join pg_stat_activity a using (pid)
    where l.granted and a.pid <> pg_backend_pid() order by a.xact_start nulls last limit 1"""


def install(
    dsn: str,
    *,
    timeout: float = 10.0,
    patience: float = 60.0,
    cron_database: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> str:
    """Install or upgrade the schema, in one transaction, one installer at a time; repeating it changes nothing.

    Traffic goes on. What changes a table or a view needs a lock that waits for every transaction which uses it, and everybody else waits
    behind that: so each try waits 0.8 s at most, and is repeated after a pause.

    Args:
        dsn: the database, as libpq takes it.
        timeout: seconds to wait for a connection.
        patience: seconds in which a try is repeated while others' transactions are in the way.
        cron_database: the database that pg_cron lives in, when it is another one of the cluster: it is to tick ours too.
        told: is given a sentence on who is in the way before each pause.

    Returns:
        One sentence: the version, and what drives the tick.

    Raises:
        ServerError: the database cannot be reached.
        SchemaError: the database holds a newer release.
        LockedError: somebody's transaction was in the way all the time.
    """
    with connect(dsn, timeout) as connection:

        def waiting(state: RetryCallState) -> None:
            told(f"{_in_the_way(connection)}; once more in {state.next_action.sleep if state.next_action else 0:.1f} s")

        tries = Retrying(
            retry=retry_if_exception_type(_IN_THE_WAY), stop=stop_after_delay(patience), before_sleep=waiting, reraise=True,
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE),
        )  # fmt: skip
        try:
            ticks = tries(_install_once, connection)
        except _IN_THE_WAY as error:
            raise LockedError(
                f"not installed within {patience:g} s: {_in_the_way(connection)}",
                "end that transaction, then bridge install (nothing has been changed)",
            ) from error
        announce(connection)
        if cron_database is not None:
            ticks = register_elsewhere(connection, cron_database)
        return f"schema bridge {bridge.__version__} is installed; {ticks}"


def _install_once(connection: psycopg.Connection) -> str:
    with connection.transaction():
        return apply(connection)


def _in_the_way(connection: psycopg.Connection) -> str:
    row = connection.execute(_HOLDER).fetchone()
    if row is None:
        return "a transaction that is over by now was in the way"
    pid, name, role, state, age = row
    return f"the transaction of pid {pid} ({name or 'no application_name'}, {role}, {state}) is in the way, {age} s old"


def lock(connection: psycopg.Connection) -> None:
    """Let one installer at a time into the open transaction's rest."""
    connection.execute(_LOCK)


def apply(connection: psycopg.Connection) -> str:
    """Install or upgrade the schema in a connection's open transaction, for migrations of other tools; ``announce`` follows its commit.

    Returns:
        What drives the tick.

    Raises:
        SchemaError: the database holds a newer release.
    """
    try:
        lock(connection)
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
    with connect(dsn, timeout) as connection:
        with connection.transaction():
            for text in texts:
                connection.execute(text.encode())
        with suppress(psycopg.errors.InsufficientPrivilege):  # a pipeline may belong to another role than the bridge
            announce(connection)
    return len(texts)


def announce(connection: psycopg.Connection) -> None:
    """Repeat to pg_cron what it may have missed, until it has read its table (see bridge.announce_cron)."""
    until_heard(connection, lambda: connection.execute("select bridge.announce_cron()").fetchone() != (0,))
