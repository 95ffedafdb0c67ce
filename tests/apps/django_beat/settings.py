"""Its settings."""

from __future__ import annotations

import os
from typing import Any

from psycopg import conninfo

given = conninfo.conninfo_to_dict(os.environ["BEAT_DSN"])

SECRET_KEY = "for tests"  # noqa: S105
USE_TZ = True
INSTALLED_APPS = ["django_celery_beat"]
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": given["dbname"],
        "USER": given.get("user", ""),
        "PASSWORD": given.get("password", ""),
        "HOST": given.get("host", ""),
        "PORT": given.get("port", ""),
    }
}
