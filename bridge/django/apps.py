"""The app as Django registers it."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from bridge.django.checks import check_schema, check_settings

__all__ = ["BridgeConfig"]


class BridgeConfig(AppConfig):
    """Nothing but checks, a migration and a command: what joins transactions looks for the app when a job is made."""

    name = "bridge.django"
    label = "bridge"
    verbose_name = "celery-bridge"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_settings)
        checks.register(check_schema, checks.Tags.database)
