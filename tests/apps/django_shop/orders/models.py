"""Orders, and an effect for everything that a task has done."""

from typing import ClassVar

from django.db import models


class Order(models.Model):
    email = models.EmailField()
    items = models.JSONField(default=list)
    status = models.CharField(max_length=20, default="new")
    total = models.IntegerField(null=True)

    class Meta:
        db_table = "orders"

    def __str__(self) -> str:
        return f"order {self.pk}"


class Effect(models.Model):
    subject = models.CharField(max_length=100)
    what = models.CharField(max_length=200)

    class Meta:
        db_table = "effects"
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"
