"""Tasks that tell what they do while they run; `ledger` is a table that the bridge knows nothing of."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from celery import Celery
from celery.utils.log import get_task_logger

import bridge

app = Celery("telling", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True, worker_hijack_root_logger=True)
bridge.install(app)

log = get_task_logger(__name__)
TABLE = "create table if not exists pages (job text not null, page integer not null, pid integer not null)"


def wait_for(go: str) -> None:
    """Until a file is there."""
    while not Path(go).exists():
        time.sleep(0.02)


@app.task(name="telling.talk")
def talk(times: int, go: str | None = None) -> int:
    """Say a great deal in no time."""
    for number in range(times):
        bridge.progress(number / times, f"step {number}")
        bridge.log(f"line {number}")
    if go is not None:
        wait_for(go)
    bridge.progress(1.0, "done")
    return times


@app.task(name="telling.say")
def say(folder: str, *words: str) -> int:
    """Say each word when there is a file of that name, and leave another that it has been said."""
    for word in words:
        wait_for(f"{folder}/{word}")
        bridge.log(word)
        bridge.progress(0.5, word)
        Path(f"{folder}/{word}.said").touch()
    return len(words)


@app.task(name="telling.pages", bind=True)
def pages(self: Any, count: int, seconds: float = 0.0, break_at: int = -1) -> int:
    """Do pages one after the other, going on where an attempt before stopped; break once at one of them."""
    begun = bridge.checkpoint() or {"next": 0}
    bridge.progress(begun["next"] / count, "begun")  # an attempt that finds all pages done has nothing else to tell
    with psycopg.connect(os.environ["BRIDGE_DATABASE_URL"], autocommit=True) as connection:
        for page in range(begun["next"], count):
            if page == break_at and begun["next"] == 0:
                raise ValueError(f"page {page} is torn")
            connection.execute("insert into pages values (%s, %s, %s)", (self.request.id, page, os.getpid()))
            bridge.log(f"page {page}")
            if not bridge.save_checkpoint({"next": page + 1}):
                return -1  # another run has the job: its own worker was taken for dead
            bridge.progress((page + 1) / count, f"page {page}")
            time.sleep(seconds)
    return int(begun["next"])


@app.task(name="telling.records")
def records() -> None:
    """Log by Python's logging, as tasks do."""
    log.info("of the task's logger, %d", 1)
    logging.getLogger("shop.orders").warning("of another logger")
    logging.getLogger("shop.orders").debug("too little")
    logging.getLogger("bridge.worker").error("of our own")


@app.task(name="telling.odd")
def odd() -> None:
    """What Postgres cannot hold as it is, and what is too long."""
    bridge.log("nul \0 and half \ud800 of a pair", "warning")
    bridge.log("x" * 9000)


@app.task(name="telling.crash")
def crash() -> NoReturn:
    """Say something and die."""
    bridge.log("about to die", "critical")
    os._exit(1)


@app.task(name="telling.too_much", bind=True)
def too_much(self: Any) -> str:
    """Save what is too large."""
    try:
        bridge.save_checkpoint("x" * 70_000)
    except bridge.BridgeError as error:
        return str(error).replace(self.request.id, "ID")
    return "saved"
