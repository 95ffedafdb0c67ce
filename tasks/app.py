"""The Celery application of the worked pipelines.

It shows how little an application needs: a broker, the result backend, and one line that makes its jobs rows.
"""

import os

from celery import Celery
from kombu import Queue

import bridge

app = Celery(
    "tasks",
    broker=os.environ.get("BRIDGE_BROKER_URL", "redis://127.0.0.1:6379/0"),
    backend="bridge://",
    include=["tasks.media.jobs"],
)
app.conf.update(
    # A plain worker serves both: a pipeline that is given a queue of its own is paused without holding the others.
    task_queues=[Queue("celery"), Queue("media")],
    task_acks_late=True,  # a worker that dies gives its job back
    worker_prefetch_multiplier=1,  # decoding takes seconds: no job waits behind a busy child while another is free
    broker_connection_retry_on_startup=True,
)
bridge.install(app)
