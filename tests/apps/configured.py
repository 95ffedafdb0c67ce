"""The ledger's tasks in an application that is configured by the environment: APP_CONF is a JSON object of Celery's settings."""

from __future__ import annotations

import json
import os

from apps.ledger import app

__all__ = ["app"]

app.conf.update(json.loads(os.environ.get("APP_CONF", "{}")))
