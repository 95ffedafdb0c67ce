"""Which database a command talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge import settings
from bridge.errors import SettingError
from bridge.local.endpoints import running_stack
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["database_url", "open_database"]


def database_url(chosen: settings.Settings) -> str:
    """The database that BRIDGE_DATABASE_URL names, else that of the stack which ``bridge up`` runs on this machine.

    Raises:
        SettingError: the variable is not set and no stack runs.
    """
    if chosen.database_url:
        return chosen.database_url
    stack = running_stack()
    if stack is None:
        raise SettingError(
            "BRIDGE_DATABASE_URL is not set and no local stack runs",
            'give it a libpq URI, for example postgresql://user@host/database, or start one with "bridge up"',
        )
    return stack.dsn


def open_database(name: str) -> Connection:
    """Connect for one command.

    Args:
        name: shows as application_name.

    Raises:
        SettingError: nobody says which database.
        ServerError: it cannot be reached.
    """
    chosen = settings.load()
    return connect(database_url(chosen), name=name, timeout=chosen.timeout)
