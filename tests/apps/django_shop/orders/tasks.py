"""The shop's tasks: shared, with a base class and signals of its own."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task, signals
from celery.contrib.django.task import DjangoTask
from django.db import transaction

from django_shop.orders.models import Effect, Order


def note(subject: str, what: str) -> None:
    """Leave an effect."""
    Effect.objects.create(subject=subject, what=what)


def whose(task: Task, args: Any) -> str:
    """Which attempt of which task: the next one may begin before the last one's hooks have ended."""
    told = " ".join(str(arg) for arg in args if isinstance(arg, int | str))
    return f"{task.name} {told}, retries {task.request.retries}"


class GatewayError(Exception):
    """The payment gateway does not answer."""


class Audited(DjangoTask):
    """Takes down what becomes of its runs; the first argument says whose."""

    abstract = True

    def before_start(self, _task_id: str, args: Any, _kwargs: Any) -> None:
        note(whose(self, args), "before_start")

    def on_success(self, retval: Any, _task_id: str, args: Any, _kwargs: Any) -> None:
        note(whose(self, args), f"on_success {retval}")

    def on_retry(self, exc: Exception, _task_id: str, args: Any, _kwargs: Any, _einfo: Any) -> None:
        note(whose(self, args), f"on_retry {type(exc).__name__} {exc}")

    def on_failure(self, exc: Exception, _task_id: str, args: Any, _kwargs: Any, _einfo: Any) -> None:
        note(whose(self, args), f"on_failure {type(exc).__name__} {exc}")

    def after_return(self, status: str, _retval: Any, _task_id: str, args: Any, _kwargs: Any, _einfo: Any) -> None:
        note(whose(self, args), f"after_return {status}")


@signals.task_prerun.connect
def started(task: Task, args: Any, **_: Any) -> None:
    note(whose(task, args), "prerun")


@signals.task_postrun.connect
def ended(task: Task, args: Any, state: str, **_: Any) -> None:
    note(whose(task, args), f"postrun {state}")


@signals.before_task_publish.connect
def sent(sender: str, routing_key: str, headers: dict[str, Any], **_: Any) -> None:
    note(f"{sender} publish", f"to {routing_key} retries={headers['retries']}")


@shared_task(base=Audited, bind=True, autoretry_for=(GatewayError,), retry_kwargs={"max_retries": 3}, default_retry_delay=0)
def confirm(self: Task, pk: int) -> str:
    """The gateway answers the third time."""
    if self.request.retries < 2:
        raise GatewayError(f"try {self.request.retries}")
    with transaction.atomic():
        order = Order.objects.select_for_update().get(pk=pk)
        order.status = "confirmed"
        order.save()
    mail_receipt.delay_on_commit(pk, order.email)
    return order.status


@shared_task(ignore_result=True)
def mail_receipt(pk: int, email: str) -> None:
    note(f"mail {pk}", f"receipt to {email}")


@shared_task
def price(pk: int, name: str, amount: int) -> int:
    note(f"price {pk} {name}", "priced")  # one subject each: parts of a chord run in any order
    return amount


@shared_task
def add_up(amounts: list[int], pk: int) -> int:
    Order.objects.filter(pk=pk).update(total=sum(amounts))
    return sum(amounts)


@shared_task
def pack(pk: int) -> list[str]:
    return [name for name, _ in Order.objects.get(pk=pk).items]


@shared_task
def label(parcel: list[str], pk: int) -> dict[str, Any]:
    return {"order": pk, "parcel": sorted(parcel)}


@shared_task
def hand_over(labelled: dict[str, Any]) -> str:
    Order.objects.filter(pk=labelled["order"]).update(status="shipped")
    return f"{len(labelled['parcel'])} things of order {labelled['order']}"


@shared_task(base=Audited)
def charge(pk: int, amount: int) -> None:
    """Fails for good when there is nothing to charge."""
    if amount <= 0:
        raise ValueError(f"nothing to charge for order {pk}")
    with transaction.atomic():
        # A database error inside a task, and the transaction that it ends.
        Order.objects.create(pk=pk, email="twice@example.org")


@shared_task
def alarm(request: Any, exc: Exception, _traceback: Any) -> None:
    note("alarm", f"{request.task} {type(exc).__name__}")
