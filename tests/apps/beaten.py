"""An application with a beat schedule of every kind, joined to the bridge."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from celery import Celery
from celery.schedules import crontab, schedule, solar
from kombu import Queue

import bridge

app = Celery("beaten", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")


@app.on_after_finalize.connect
def set_up(sender: Any, **_: Any) -> None:
    sender.add_periodic_task(7200, tell.s("added"), name="added")


app.conf.update(
    timezone="Europe/Berlin",
    task_queues=[Queue("celery"), Queue("reports"), Queue("mail")],
    task_routes={"beaten.routed": {"queue": "reports"}},
    broker_connection_retry_on_startup=True,
)
bridge.install(app)


@app.task(name="beaten.tell")
def tell(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs}


@app.task(name="beaten.routed")
def routed() -> None:
    pass


@app.task(name="beaten.own", queue="mail", expires=120)
def own() -> None:
    pass


class Odd(schedule):
    """A schedule of the application's own."""


app.conf.beat_schedule = {
    "every second": {"task": "beaten.tell", "schedule": 1.0, "args": (1,), "kwargs": {"who": "beat"}},
    "nightly": {"task": "beaten.tell", "schedule": crontab(minute=30, hour=2)},
    "first monday": {"task": "beaten.tell", "schedule": crontab(minute=0, hour="9", day_of_month="1-7", day_of_week="mon")},
    "over midnight": {"task": "beaten.tell", "schedule": crontab(minute="*/15", hour="22-1", day_of_week="sat,sun")},
    "quarters": {"task": "beaten.routed", "schedule": crontab(minute=0, hour=0, day_of_month=1, month_of_year="*/3")},
    "half hours": {"task": "beaten.own", "schedule": dt.timedelta(minutes=30), "relative": True},
    "with options": {
        "task": "beaten.tell",
        "schedule": 90,
        "options": {"queue": "mail", "expires": 45.5, "time_limit": 30, "headers": {"tenant": "x"}, "priority": 6, "shadow": "me"},
    },
    "unknown task": {"task": "elsewhere.task", "schedule": crontab()},
    "at dusk": {"task": "beaten.tell", "schedule": solar("sunset", 52.5, 13.4)},
    "at odd times": {"task": "beaten.tell", "schedule": Odd(60)},
    "too often": {"task": "beaten.tell", "schedule": 0.5},
    "fraction": {"task": "beaten.tell", "schedule": 10.5},
    "linked": {"task": "beaten.tell", "schedule": 60, "options": {"link": tell.si()}},
    "not json": {"task": "beaten.tell", "schedule": 60, "args": (dt.date(2031, 1, 1),)},
    "until": {"task": "beaten.tell", "schedule": 60, "options": {"expires": dt.datetime(2031, 1, 1, tzinfo=dt.UTC)}},
}
