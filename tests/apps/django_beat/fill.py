"""Make the tables by their own migrations, and periodic tasks of every kind by their own models."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import django
from django.core.management import call_command

django.setup()
call_command("migrate", verbosity=0)

from django_celery_beat import models  # noqa: E402 - models can be imported when Django is set up


def add(name: str, **values: Any) -> None:
    """Make one, of the task ``shop.work`` unless it says otherwise."""
    models.PeriodicTask.objects.create(name=name, **{"task": "shop.work", **values})


crontab = models.CrontabSchedule.objects.create(
    minute="*/15", hour="8-18", day_of_week="mon-fri", day_of_month="1-7", month_of_year="*", timezone="Europe/Berlin"
)
minutes = models.IntervalSchedule.objects.create(every=90, period="minutes")
micro = models.IntervalSchedule.objects.create(every=1500, period="microseconds")
sun = models.SolarSchedule.objects.create(event="sunrise", latitude=52, longitude=13)
once = models.ClockedSchedule.objects.create(clocked_time=datetime(2040, 1, 2, 3, 4, tzinfo=UTC))

add(
    "full", crontab=crontab, args='["it\'s", 1]', kwargs='{"a": null}', queue="mail", priority=4, headers='{"tenant": "x"}',
    expire_seconds=45,
    start_time=datetime(2030, 1, 1, tzinfo=UTC), expires=None, description="what it is for", routing_key="mail.key",
)  # fmt: skip
add("interval", interval=minutes, expires=datetime(2041, 1, 1, tzinfo=UTC))
add("disabled", interval=minutes, enabled=False)
add("ended", interval=minutes, expires=datetime(2020, 1, 1, tzinfo=UTC))
add("micro", interval=micro)
add("one off", interval=minutes, one_off=True)
add("solar", solar=sun)
add("clocked", clocked=once, one_off=True, args='["it\'s"]', queue="mail")
add("broken", interval=minutes, args=json.dumps({"no": "array"}))
models.CrontabSchedule.objects.filter(pk=crontab.pk).update(minute="*/15")
bad = models.CrontabSchedule.objects.create(minute="0")
add("bad", crontab=bad)
models.CrontabSchedule.objects.filter(pk=bad.pk).update(minute="61")
