"""The event ``task-sent``, as Celery's own producers send it, for Flower and whoever else listens to Celery's events.

Celery sends it when a task is called; here a call is a row, and the message is sent when a drainer publishes it. Events are for
people's eyes: they are sent after the jobs have been marked, only while somebody listens, and one that cannot be sent is forgotten.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bridge import message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.queries.dispatch import Claimed

__all__ = ["EXCHANGE", "ROUTING_KEY", "Announcer", "Mode", "hostname"]

Mode = Literal["auto", "on", "off"]

log = logging.getLogger("bridge.broker")

EXCHANGE = "celeryev"  # Celery's setting event_exchange, where nobody has changed it
ROUTING_KEY = "task.multi"  # a message with this key is a list of events
_GROUP = 100  # events of one message
_QUIET = 1.0  # seconds after which it is tried again whether somebody listens


class Send(Protocol):
    """How a broker sends a group of events."""

    def __call__(self, group: list[dict[str, Any]], *, always: bool) -> bool:
        """Send one group, with ``always`` also where nobody seems to listen; False when nobody took it."""


class Announcer:
    """Sends ``task-sent`` in groups, while somebody listens.

    Whether somebody does is known from what became of the last group; after one that nobody took, a second passes without any.
    """

    def __init__(self, mode: Mode, send: Send) -> None:
        """Make one for a connection.

        Args:
            mode: "on" sends whether or not somebody listens, "off" never.
            send: sends one group; False when nobody took it.
        """
        self._mode = mode
        self._send = send
        self._clock = count(1)
        self._quiet_until = float("-inf")
        self._well = True

    def announce(self, jobs: Sequence[Claimed], sent_at: float) -> None:
        """Say that these jobs were sent, and when (seconds since the epoch). Never raises: no event is worth a job."""
        if self._mode == "off" or time.monotonic() < self._quiet_until:
            return
        try:
            heard = all(self._send_group(jobs[at : at + _GROUP], sent_at) for at in range(0, len(jobs), _GROUP))
        except Exception as error:  # noqa: BLE001 - whatever it is, jobs go on
            if self._well:
                log.warning("events are not sent exchange=%s error=%s", EXCHANGE, error)
            self._well = heard = False
        else:
            self._well = True
        self._quiet_until = float("-inf") if heard else time.monotonic() + _QUIET

    def _send_group(self, jobs: Sequence[Claimed], sent_at: float) -> bool:
        always = self._mode == "on"
        return self._send(self._made(jobs, sent_at), always=always) or always

    def _made(self, jobs: Sequence[Claimed], sent_at: float) -> list[dict[str, Any]]:
        now = time.localtime()
        common = {
            "type": "task-sent", "hostname": hostname(), "pid": os.getpid(), "timestamp": sent_at, "utcoffset": -now.tm_gmtoff // 3600,
        }  # fmt: skip
        return [{**common, "clock": next(self._clock), **_fields(job)} for job in jobs]


def hostname() -> str:
    """What events name as their sender."""
    return f"bridge{os.getpid()}@{socket.gethostname()}"


def _fields(job: Claimed) -> dict[str, Any]:
    """What the event says of one job: what its message says."""
    headers = message.headers(job)
    properties = json.loads(job.properties) if job.properties else {}
    return {
        "uuid": headers["id"], "root_id": headers.get("root_id"), "parent_id": headers.get("parent_id"), "name": headers["task"],
        "args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr"), "retries": headers.get("retries", 0),
        "eta": headers.get("eta"), "expires": headers.get("expires"), "queue": job.queue,
        "exchange": properties.get("exchange", ""), "routing_key": properties.get("routing_key", job.queue),
    }  # fmt: skip
