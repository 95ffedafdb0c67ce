"""Installing our schema from a migration."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.migrations import RunPython

from bridge import schema
from bridge.errors import SchemaError
from bridge.frameworks import django_alias

__all__ = ["InstallSchema"]


class InstallSchema(RunPython):
    """Install or upgrade schema ``bridge``, in the database that BRIDGE_DATABASE_ALIAS names and in no other.

    The SQL states the present: whichever release's migration runs it, the result is the schema of the release that is installed. It
    cannot be undone: dropping the schema would drop every job.
    """

    reduces_to_sql = False

    def __init__(self) -> None:
        super().__init__(_install)

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """For Django, which writes migrations anew when it squashes them."""
        return self.__class__.__name__, [], {}

    def describe(self) -> str:
        """For ``migrate --plan``."""
        return "Install or upgrade schema bridge"


def _install(apps: Any, editor: Any) -> None:
    del apps
    connection = editor.connection
    if connection.alias != django_alias():
        return
    if connection.vendor != "postgresql":
        raise SchemaError(f"database {connection.alias!r} is {connection.display_name}", "set BRIDGE_DATABASE_ALIAS to one of Postgres")
    connection.ensure_connection()
    schema.apply(connection.connection)
    transaction.on_commit(lambda: schema.announce(connection.connection), using=connection.alias)
