"""Its settings: where the database is, and no word of it for the bridge."""

from __future__ import annotations

import os
from typing import Any

from psycopg import conninfo

given = conninfo.conninfo_to_dict(os.environ["ORDERS_DSN"])

SECRET_KEY = "for tests"  # noqa: S105
USE_TZ = True
INSTALLED_APPS = ["bridge.django", "apps.django_orders"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": os.environ.get("ORDERS_ENGINE", "django.db.backends.postgresql"),
        "NAME": given["dbname"],
        "USER": given.get("user", ""),
        "PASSWORD": given.get("password", ""),
        "HOST": given.get("host", ""),
        "PORT": given.get("port", ""),
    },
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
BRIDGE_DATABASE_ALIAS = os.environ.get("ORDERS_ALIAS", "default")
BRIDGE_TIMEOUT = 20.0
if "ORDERS_UNKNOWN" in os.environ:
    BRIDGE_TIMEOOT = 5

CELERY_BROKER_URL = os.environ.get("BRIDGE_BROKER_URL", "redis://127.0.0.1:1/0")
CELERY_RESULT_BACKEND = "bridge://"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
