"""What a test says about enqueued jobs, and what it is told when that is not so."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import bridge
from bridge.testing import assert_enqueued, enqueued, refute_enqueued
from bridge.testing.applications import renew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_calls import MakeApp


@pytest.fixture
def mail(make_caller: MakeApp) -> Iterator[Any]:
    """A task that is called in many ways."""
    renew()  # what this process remembers of another test's database
    app = make_caller(accept_content=["json", "pickle"])

    @app.task(shared=False, name="shop.mail")
    def shop_mail(*args: Any, **kwargs: Any) -> None:
        """Nobody runs it."""

    yield shop_mail
    renew()


def test_jobs_are_found_by_everything_that_a_call_says(mail: Any) -> None:
    mail.apply_async((7,), {"to": "ada"}, queue="mail")
    mail.apply_async((8,), countdown=60)
    bridge.enqueue("shop.other", [7])
    assert [job.task for job in enqueued()] == ["shop.mail", "shop.mail", "shop.other"]
    assert [job.args for job in assert_enqueued(mail, times=2)] == [[7], [8]]
    assert_enqueued("shop.mail", args=[7], kwargs={"to": "ada"}, queue="mail", status="queued")
    assert_enqueued(mail, args=(8,), kwargs={}, status="scheduled")
    assert_enqueued(args=[7], times=None)
    refute_enqueued(mail, args=[7], kwargs={})
    refute_enqueued("shop.mail", queue="elsewhere")


@pytest.mark.parametrize("options", [{}, {"serializer": "pickle"}, {"compression": "zlib"}], ids=str)
def test_arguments_are_compared_as_they_were_given_whatever_carries_them(mail: Any, options: dict[str, Any]) -> None:
    moment, price = datetime(2026, 2, 3, tzinfo=UTC), Decimal("1.10")
    mail.apply_async((moment, (1, 2)), {"price": price}, **options)
    assert_enqueued(mail, args=[moment, [1, 2]], kwargs={"price": price})
    refute_enqueued(mail, kwargs={"price": Decimal("1.11")})


def test_a_failure_says_what_there_is(mail: Any) -> None:
    mail.apply_async((7,), queue="mail")
    mail.delay(8)
    with pytest.raises(AssertionError) as told:
        assert_enqueued(mail, args=[9], queue="mail", times=2)
    assert str(told.value).splitlines() == [
        "expected shop.mail args=[9] queue=mail twice, found none",
        "the jobs that there are (2):",
        "  shop.mail args=[7] kwargs={} queue=mail status=queued",
        "  shop.mail args=[8] kwargs={} queue=celery status=queued",
    ]
    with pytest.raises(AssertionError, match=r"expected no shop\.mail, found twice"):
        refute_enqueued(mail)


def test_a_failure_says_why_there_is_nothing(mail: Any) -> None:
    mail.app.conf.task_always_eager = True
    mail.delay(7)
    with pytest.raises(AssertionError, match=r"(?s)there is no job at all; .*task_always_eager is on in application 'caller'"):
        assert_enqueued(mail)
