"""What an install would change, found out without changing anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg

import bridge
from bridge.errors import SchemaError, from_sqlstate
from bridge.schema import catalog, cron
from bridge.schema.files import files
from bridge.schema.installing import lock
from bridge.schema.version import connect, installed_version, numbers

if TYPE_CHECKING:
    from bridge.schema.catalog import Catalog

__all__ = ["LEFT", "Change", "preview"]

LEFT = {"keep", "differs"}  # actions that change nothing

_RETIRED = "80_retired.sql"
_MADE_ONCE = {"table", "column", "type", "sequence", "constraint", "index", "trigger", "policy"}  # each release changes them by itself
_OURS = re.compile(r" to (public|bridge_(producer|worker|operator|viewer))$")  # whose rights an install makes what the list says
_TOLD = {"version", "table", "column", "type", "sequence", "constraint", "index"}  # kinds whose text fits into a line


@dataclass(frozen=True, slots=True)
class Change:
    """What an install would do with one object.

    Attributes:
        action: add, change or drop; keep for what this release does not know and leaves alone; differs for what is not as this release
            made it, and is left so.
        kind: version, table, column, type, view, function, index, constraint, trigger, policy, sequence, setting, grant, or pg_cron entry.
        name: of the object, with its schema.
        before: what it is, where that fits into a line; else empty.
        after: what it will be, likewise.
    """

    action: str
    kind: str
    name: str
    before: str = ""
    after: str = ""


def preview(dsn: str, *, timeout: float = 10.0, cron_database: str | None = None) -> list[Change]:
    """What an install would change. Traffic is not held up: no lock is taken that it would wait for.

    The schema of this release is made beside the one that is there, compared with it, and rolled back. For that the installed one gets
    another name, which nobody else sees: a renamed schema locks nothing of what is in it.

    Args:
        dsn: the database, as libpq takes it.
        timeout: seconds to wait for a connection.
        cron_database: the database that pg_cron lives in, as for ``install``.

    Returns:
        The changes, in the order of their kinds; what is left as it is comes last.

    Raises:
        ServerError: the database cannot be reached.
        SchemaError: the database holds a newer release, or this role may not install.
    """
    installed = installed_version(dsn, timeout=timeout)
    if installed is not None and numbers(installed) > numbers(bridge.__version__):
        raise SchemaError(
            f"schema is at {installed}, these files are {bridge.__version__}", "install with the newer release; going back is not supported"
        )
    with connect(dsn, timeout) as connection, connection.transaction(force_rollback=True):
        connection.execute("set local search_path = ''; set local lock_timeout = '5s'; set local bridge.preview = on")
        try:
            return _compared(connection, installed, cron_database)
        except psycopg.Error as error:
            known = from_sqlstate(error.sqlstate, error.diag.message_primary or "", error.diag.message_hint)
            raise known or SchemaError(f"the install would fail: {str(error).strip().splitlines()[0]}", "see the server's log") from error


def _compared(connection: psycopg.Connection, installed: str | None, cron_database: str | None) -> list[Change]:
    lock(connection)
    texts = dict(files())
    if installed is None:
        before: Catalog = {}
    else:
        before = catalog.read(connection)
        connection.execute("alter schema bridge rename to bridge_installed")
    for text in texts.values():
        connection.execute(text.encode())
    changes = _cron_changes(connection, cron_database)
    if installed is None:
        return [Change("add", "version", "bridge", after=bridge.__version__), *changes]
    found = _differences(before, catalog.read(connection), texts[_RETIRED])
    return [*(_as_left(change) if installed == bridge.__version__ else change for change in found), *changes]


def _cron_changes(connection: psycopg.Connection, database: str | None) -> list[Change]:
    entries = cron.plan(connection, database)
    return [
        Change(entry.action, "pg_cron entry", entry.name, after=f"{entry.schedule}: {entry.command}")
        for entry in entries
        if entry.action != "keep"
    ]


def _differences(before: Catalog, after: Catalog, retired: str) -> list[Change]:
    found = []
    functions = {name.partition("(")[0] for kind, name in after if kind == "function"}
    for kind, name in sorted(before.keys() | after.keys(), key=lambda key: (catalog.KINDS.index(key[0]), key[1])):
        old, new = before.get((kind, name)), after.get((kind, name))
        if old == new:
            continue
        goes = _is_retired(name, retired) or (kind == "function" and name.partition("(")[0] in functions)
        action = "add" if old is None else "change" if new is not None else "drop" if goes else "keep"
        if action == "change" and kind == "view" and (old or "").splitlines()[-1] == (new or "").splitlines()[-1]:
            action = "differs"
        lines = (old or "", new or "") if kind in _TOLD else ("", "")
        found.append(Change(action, kind, name, *lines))
    return sorted(found, key=lambda change: change.action in LEFT)


def _as_left(change: Change) -> Change:
    """What an install of the release that is there already does with it: what tables are made of is not mended."""
    if change.action in {"add", "change"} and change.kind in _MADE_ONCE:
        return replace(change, action="differs")
    return change


def _is_retired(name: str, retired: str) -> bool:
    if _OURS.search(name):
        return True  # whatever anybody granted to everybody, or to a role of ours beside the list, is taken back
    if name.endswith(" to bridge_tenant"):
        return False  # tenants are on, which a fresh schema does not know
    bare = re.search(r"bridge\.\w+", name)
    return bare is not None and re.search(rf"{re.escape(bare[0])}\b", retired) is not None
