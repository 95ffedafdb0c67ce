"""The schema of release 0.1.0."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations

from bridge.django.operations import InstallSchema


class Migration(migrations.Migration):
    """Later releases add a migration like this one: the same operation, run again."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [InstallSchema()]
