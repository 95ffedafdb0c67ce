"""The shop's pages."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from celery import chain, chord
from celery.result import AsyncResult
from conversation import shown
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from django_shop.orders import tasks
from django_shop.orders.models import Order

if TYPE_CHECKING:
    from uuid import UUID


class EmptyOrderError(Exception):
    """An order without items."""


@csrf_exempt
def create(request: HttpRequest) -> JsonResponse:
    """Confirm an order in the background, once it is committed; one without items is rolled back."""
    wanted = json.loads(request.body)
    try:
        with transaction.atomic():
            order = Order.objects.create(email=wanted["email"], items=wanted["items"])
            tasks.confirm.delay_on_commit(order.pk)
            transaction.on_commit(partial(tasks.pack.delay, order.pk))
            if not order.items:
                raise EmptyOrderError
    except EmptyOrderError:
        return JsonResponse({"error": "empty"}, status=400)
    return JsonResponse({"order": order.pk}, status=201)


def show(_: HttpRequest, pk: int) -> JsonResponse:
    order = Order.objects.get(pk=pk)
    return JsonResponse({"status": order.status, "total": order.total})


@csrf_exempt
def total(_: HttpRequest, pk: int) -> JsonResponse:
    """A chord."""
    order = Order.objects.get(pk=pk)
    result = chord(tasks.price.s(pk, name, amount) for name, amount in order.items)(tasks.add_up.s(pk))
    return JsonResponse({"task": result.id})


@csrf_exempt
def ship(_: HttpRequest, pk: int) -> JsonResponse:
    """A chain."""
    result = chain(tasks.pack.s(pk), tasks.label.s(pk), tasks.hand_over.s()).apply_async()
    return JsonResponse({"task": result.id, "first": result.parent.parent.id})


@csrf_exempt
def pay(request: HttpRequest, pk: int) -> JsonResponse:
    """A call with an errback."""
    amount = json.loads(request.body)["amount"]
    result = tasks.charge.apply_async((pk, amount), link_error=tasks.alarm.s())
    return JsonResponse({"task": result.id})


def task(_: HttpRequest, task_id: UUID) -> JsonResponse:
    return JsonResponse(shown(AsyncResult(str(task_id))))
