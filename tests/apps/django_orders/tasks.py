"""Tasks that make orders, and mails about them."""

from __future__ import annotations

from typing import Any

from apps.django_orders.models import Order
from celery import shared_task
from django.db import transaction


@shared_task(name="orders.mail")
def mail(name: str) -> str:
    return f"mail for {name}"


@shared_task(name="orders.place", bind=True, max_retries=2)
def place(self: Any, name: str, *, retry: bool = False, fail: bool = False) -> str:
    with transaction.atomic():
        mail.delay(name)
        Order.objects.create(name=name)
        if retry and self.request.retries == 0:
            raise self.retry(countdown=0)
        if fail:
            raise ValueError(name)
    return name
