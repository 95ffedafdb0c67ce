"""Somebody who listens to Celery's events, as Flower does."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.events import EventReceiver
from fix_servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listener(threading.Thread):
    """Hears every event of a broker until it is stopped."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self.app = Celery(broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = options
        self.heard: list[dict[str, Any]] = []
        self._stopped = threading.Event()
        self.listening = threading.Event()

    def run(self) -> None:
        with self.app.connection_for_read() as connection:
            receiver = EventReceiver(connection, handlers={"*": self.heard.append}, app=self.app)
            with receiver.consumer_context(wakeup=False) as (consuming, _, _):
                while not self._stopped.is_set():
                    with suppress(TimeoutError):
                        consuming.drain_events(timeout=0.1)
                    self.listening.set()  # the first look has subscribed

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def sent(self, number: int) -> list[dict[str, Any]]:
        """The first so many ``task-sent``, once they have come."""

        def come() -> list[dict[str, Any]]:
            found = [event for event in list(self.heard) if event["type"] == "task-sent"]
            return found if len(found) >= number else []

        return wait_until(come, 20, f"{number} events task-sent")


@contextmanager
def listening(url: str, **options: Any) -> Iterator[Listener]:
    """A listener that has begun."""
    listener = Listener(url, **options)
    listener.start()
    assert listener.listening.wait(20)
    yield listener
    listener.stop()
