"""Tasks whose runs are traced, and whose log lines name their job."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery

import bridge

app = Celery("traced", broker=os.environ["BRIDGE_BROKER_URL"])
app.conf.result_backend = "bridge://"
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_task_log_format = "%(levelname)s [job=%(job_id)s run=%(run_id)s trace=%(trace_id)s] %(message)s"
bridge.install(app)


@app.task(name="traced.note")
def note(word: str) -> str:
    logging.getLogger("celery.task").info("noted %s", word)
    return word


@app.task(name="traced.fail", bind=True)
def fail(self: Any, times: int) -> int:
    attempt = self.request.get("bridge_attempt") or 1
    if attempt <= times:
        raise ValueError(f"attempt {attempt}")
    return attempt


@app.task(name="traced.again", bind=True, max_retries=3)
def again(self: Any) -> int:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return self.request.retries
