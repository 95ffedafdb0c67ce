"""The shop's own tests: Django's TestCase rolls each of them back, and with it the jobs that it has made."""

from __future__ import annotations

from django.test import TestCase

from bridge.testing import assert_enqueued, enqueued, refute_enqueued, run_jobs
from django_shop.orders.models import Order
from django_shop.orders.tasks import charge, confirm, mail_receipt


class OrderTest(TestCase):
    def setUp(self) -> None:
        refute_enqueued()  # of the tests before
        with self.captureOnCommitCallbacks(execute=True):
            self.client.post("/orders/", {"email": "ada@example.org", "items": [["tea", 3]]}, content_type="application/json")
        self.order = Order.objects.get()

    def test_an_order_is_confirmed_and_its_receipt_mailed(self) -> None:
        assert_enqueued(confirm, args=[self.order.pk], queue="celery", status="queued")
        with self.captureOnCommitCallbacks(execute=True):
            run_jobs()
        self.order.refresh_from_db()
        assert self.order.status == "confirmed"
        [confirmed] = assert_enqueued(confirm, status="succeeded")
        assert (confirmed.result, confirmed.attempts) == ("confirmed", 3)
        assert_enqueued(mail_receipt, args=[self.order.pk, "ada@example.org"], queue="mail", status="queued")

    def test_a_database_error_in_a_task_leaves_the_test_its_transaction(self) -> None:
        charge.delay(self.order.pk, 5)
        run_jobs()
        assert_enqueued(charge, status="failed")
        assert Order.objects.count() == 1

    def test_nothing_is_enqueued_for_an_order_without_items(self) -> None:
        before = len(enqueued())
        self.client.post("/orders/", {"email": "ada@example.org", "items": []}, content_type="application/json")
        assert len(enqueued()) == before
