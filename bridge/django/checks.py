"""What ``manage.py check`` says about a configuration that cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import Error, Warning  # noqa: A004 - Django's name
from django.db import connections

from bridge import schema
from bridge import settings as configuration
from bridge.errors import BridgeError, SettingError
from bridge.frameworks import django_alias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_schema", "check_settings"]


def check_settings(app_configs: Any, **_: Any) -> list[Any]:
    """The database alias leads to Postgres by psycopg 3, and every ``BRIDGE_*`` is one that we know."""
    del app_configs
    alias = django_alias()
    if alias not in connections:
        return [_error("E001", f"BRIDGE_DATABASE_ALIAS is {alias!r}, which DATABASES has not", f"name one of {', '.join(connections)}")]
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return [
            _error(
                "E002", f"database {alias!r} has ENGINE {connection.settings_dict['ENGINE']!r}, and jobs are rows in Postgres",
                "use django.db.backends.postgresql, or set BRIDGE_DATABASE_ALIAS to a database that does",
            )
        ]  # fmt: skip
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415 - not without Postgres

    if not is_psycopg3:
        return [_error("E003", f"Django reaches database {alias!r} by psycopg2", "install psycopg 3: Django then takes it by itself")]
    try:
        configuration.load()
    except SettingError as error:
        return [_error("E004", str(error).partition(f": {error.hint}")[0] if error.hint else str(error), error.hint)]
    return []


def check_schema(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> list[Any]:
    """With ``--database``: the schema is there, and of this release."""
    del app_configs
    if django_alias() not in (databases or ()) or check_settings(None):
        return []
    try:
        schema.check(configuration.load().require_database())
    except BridgeError as error:
        return [Warning(str(error), hint="run manage.py migrate", id="bridge.W001")]
    return []


def _error(number: str, message: str, hint: str) -> Error:
    return Error(message, hint=hint, id=f"bridge.{number}")
