"""``manage.py bridge …``: the command line, with Django's database and the ``BRIDGE_*`` of its settings."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

from bridge.cli import main
from bridge.frameworks import django_settings

__all__ = ["Command"]


class Command(BaseCommand):
    """Hands everything on."""

    help = "celery-bridge: drain, doctor, jobs and the rest, for the database of Django"
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's name and form

    def run_from_argv(self, argv: list[str]) -> None:
        """Leave the arguments to the command line: it has its own options and help."""
        for name, value in django_settings().items():
            os.environ.setdefault(name, value)
        main(argv[2:], prog_name=f"{os.path.basename(argv[0])} {argv[1]}")  # noqa: PTH119 - a word to show

    def handle(self, *args: Any, **options: Any) -> None:
        """Django's ``call_command``."""
        del options
        self.run_from_argv([sys.argv[0], "bridge", *args])
