"""A worker that runs signed messages alone: what it refuses, it drops before anything of it is decoded, and counts.

The row of a message that was changed on its way is not touched by that. Nobody holds its message any more, so its true copy is published
again, as that of any message that is gone.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from bridge.message import deliveries
from bridge.signing import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.application import Membership

__all__ = ["Refusals", "accept_signed_alone", "refusals"]

log = logging.getLogger("bridge.worker")

_SHOWN = 80  # characters of a name that somebody has written


class Refusals:
    """How many messages this process has refused since the last report, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, reason: str) -> bool:
        """Count one; whether it is the first since the last report."""
        with self._lock:
            self._counts[reason] += 1
            return self._counts.total() == 1

    def give_back(self, counts: dict[str, int]) -> None:
        """What was taken could not be reported."""
        with self._lock:
            self._counts.update(counts)

    def take(self) -> dict[str, int]:
        """All, to be reported."""
        with self._lock:
            counts, self._counts = dict(self._counts), Counter()
        return counts


refusals = Refusals()


def accept_signed_alone(consumer: Any, joined: Membership) -> None:
    """Have a consumer look at signatures before it looks at anything else, where the settings say so."""
    if joined.settings.accept != "signed":
        return
    if joined.app.conf.worker_enable_remote_control:
        log.warning("commands are not signed: who writes to the broker can stop this worker, set worker_enable_remote_control = False")
    signer, theirs = Signer(joined.settings.signing_keys()), consumer.create_task_handler
    consumer.create_task_handler = lambda *args, **options: _guarded(consumer, signer, theirs(*args, **options))
    consumer.on_decode_error = lambda message, _error: _refuse(consumer, message, "unreadable")


def _guarded(consumer: Any, signer: Signer, theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def on_task_received(message: Any) -> Any:
        reason = _objection(signer, message)
        return theirs(message) if reason is None else _refuse(consumer, message, reason)

    return on_task_received


def _objection(signer: Signer, message: Any) -> str | None:
    try:
        reason = signer.objection(message)
        return reason if reason or deliveries(message.headers) else "unsigned"
    except Exception:  # noqa: BLE001 - whatever somebody has made of it
        return "unreadable"


def _refuse(consumer: Any, message: Any, reason: str) -> None:
    """Drop a message. Of its content nothing is said; of many, the first, and the rest as a number with the next report."""
    if refusals.note(reason):
        headers = message.headers if isinstance(message.headers, dict) else {}
        task, identity = (repr(headers.get(name))[:_SHOWN] for name in ("task", "id"))
        log.error("refused a message reason=%s task=%s task_id=%s", reason, task, identity)
    message.reject_log_error(log, consumer.connection_errors)
