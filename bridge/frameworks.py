"""What a framework that runs this process knows about our database: Django's settings, where its app ``bridge.django`` is installed."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["django_alias", "django_settings", "in_django"]

_PREFIX = "BRIDGE_"
_ALIAS = "BRIDGE_DATABASE_ALIAS"
_KEYWORDS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
# Of what Django hands on to psycopg, that which says how to reach the server.
_OPTIONS = ("service", "passfile", "sslmode", "sslcert", "sslkey", "sslrootcert", "options", "target_session_attrs", "gssencmode")


def in_django() -> bool:
    """Whether Django has started with our app."""
    registry = sys.modules.get("django.apps")
    return registry is not None and registry.apps.apps_ready and registry.apps.is_installed("bridge.django")


def django_alias() -> str:
    """Which of Django's databases holds our schema."""
    from django.conf import settings  # noqa: PLC0415 - only where Django is

    return str(getattr(settings, _ALIAS, "default"))


def django_settings() -> dict[str, str]:
    """The ``BRIDGE_*`` of Django's settings by their names, and the database as Django reaches it; empty outside of Django."""
    if not in_django():
        return {}
    from django.conf import settings  # noqa: PLC0415 - only where Django is

    given = {name: str(getattr(settings, name)) for name in dir(settings) if name.startswith(_PREFIX) and name != _ALIAS}
    return {"BRIDGE_DATABASE_URL": _database(), **given}


def _database() -> str:
    """The DSN of our database, as it is now: a test runner of Django's changes its name."""
    from django.db import connections  # noqa: PLC0415 - only where Django is

    database: dict[str, Any] = connections[django_alias()].settings_dict if django_alias() in connections else {}
    if "postg" not in str(database.get("ENGINE")):  # postgresql, postgis; bridge.django's check says so in words
        return ""
    words = {keyword: database.get(name) for name, keyword in _KEYWORDS.items()}
    words |= {name: (database.get("OPTIONS") or {}).get(name) for name in _OPTIONS}
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in words.items() if value not in (None, ""))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
