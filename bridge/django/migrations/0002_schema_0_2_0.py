"""The schema of release 0.2.0."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations

from bridge.django.operations import InstallSchema


class Migration(migrations.Migration):
    """What 0.1.0 has becomes what 0.2.0 has, in place."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("bridge", "0001_schema_0_1_0")]
    operations: ClassVar[list[Any]] = [InstallSchema()]
