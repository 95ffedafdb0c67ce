"""Whether two connections lead to one database, by whatever address, pooler or socket they go there."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from bridge.queries.connection import connect, translated

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_same_database", "leads_to_same_database"]

# Whether this database sees a lock; it never fails, so that it can be asked inside of anybody's transaction.
_IS_HELD = (
    "select exists (select from pg_catalog.pg_locks l join pg_catalog.pg_database d on d.oid = l.database"
    " where d.datname = pg_catalog.current_database() and l.locktype = 'advisory'"
    " and l.objid::bigint = {number} and l.classid::bigint = {kind})"
)
_KIND = 0x62726964  # so that whoever looks at pg_locks finds "brid" in it


def is_same_database(dsn: str, timeout: float, ask: Callable[[str], bool]) -> bool:
    """Whether ``ask`` looks at the database of a DSN: we take a random lock here, and the other side must see it.

    Addresses cannot tell (a name, a socket, a pooler), nor can anything stored (copies have it too). A standby sees no locks, so it is
    another database, as it should be: nothing can be enqueued there.

    Args:
        dsn: ours.
        timeout: seconds for connecting, and for a statement.
        ask: runs a query of one boolean on the other side.

    Raises:
        ServerError: ours cannot be reached.
    """
    number = secrets.randbits(31)
    with connect(dsn, name="bridge identity", timeout=timeout) as connection, translated(), connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s, %s)", (_KIND, number))
        return ask(_IS_HELD.format(number=number, kind=_KIND))


def leads_to_same_database(dsn: str, other: str, timeout: float) -> bool:
    """Whether another DSN leads to our database.

    Raises:
        ServerError: one of them cannot be reached.
    """
    with connect(other, name="bridge identity", timeout=timeout) as connection:

        def ask(query: str) -> bool:
            row = connection.execute(query.encode()).fetchone()
            return bool(row and row[0])

        return is_same_database(dsn, timeout, ask)
