"""Its Celery application, as Celery's documentation writes it, and the one line."""

from __future__ import annotations

import os

from celery import Celery

import bridge

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "apps.django_orders.settings")
app = Celery("django_orders")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
bridge.install(app)
