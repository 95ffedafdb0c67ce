"""Tasks that make orders, and mails about them."""

from __future__ import annotations

import os
import signal
from typing import Any

from apps.django_orders.models import Order
from celery import shared_task
from django.db import connection, transaction

import bridge


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


@shared_task(name="orders.complete")
def complete(name: str, *, dies: str = "", blocks: bool = True) -> str:
    """Make an order and complete with it; in its first run it may die before the commit, or after it."""
    first = not Order.objects.filter(name=f"{name} was tried").exists()
    Order.objects.create(name=f"{name} was tried")
    if not blocks:
        bridge.complete(connection, name)
    with transaction.atomic():
        Order.objects.create(name=name)
        result = bridge.complete(connection, name)
        if first and dies == "before":
            os.kill(os.getpid(), signal.SIGKILL)
    if dies == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return str(result)
