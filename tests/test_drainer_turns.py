"""No queue waits for its turn while another one is busy."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from fix_servers import wait_for_value
from fix_sql import Session

from bridge.drainer import Drainer
from bridge.settings import Settings

PUBLISHED = "select count(*) from bridge.inflight where queue = 'slow' and state = 'published'"
START = "select bridge.start(seq, token, %s, 1) from bridge.inflight where queue = 'slow' and state = 'published'"


def test_a_queue_whose_window_gets_room_goes_on_while_another_is_enqueued_to_without_a_pause(db: Session, redis_url: str) -> None:
    stop, enough = threading.Event(), threading.Event()
    db.do("select bridge.set_window('slow', 1), bridge.set_window('busy', 0)")
    for _ in range(3):
        db.enqueue(queue="slow")
    drainer = Drainer(Settings(database_url=db.dsn, broker_url=redis_url), stop)

    def enqueue() -> None:
        session = Session(db.dsn)
        while not enough.is_set():
            session.enqueue(queue="busy")

    with ThreadPoolExecutor(2) as pool, ExitStack() as ends:
        ends.callback(stop.set)
        ends.callback(enough.set)
        running = pool.submit(drainer.run)
        wait_for_value(db.dsn, PUBLISHED, value=1)
        pool.submit(enqueue)
        for _ in range(3):
            wait_for_value(db.dsn, PUBLISHED, value=1)
            db.do(START, db.worker)
        enough.set()
        stop.set()
        running.result()
