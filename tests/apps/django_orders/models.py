"""Orders."""

from __future__ import annotations

from typing import Any

from django.db import models


class Order(models.Model):
    name: Any = models.TextField()

    class Meta:
        app_label = "django_orders"
        db_table = "orders"

    def __str__(self) -> str:
        return str(self.name)
