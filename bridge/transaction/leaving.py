"""Sessions with jobs in them that nobody ends: dropped, or still open when their process ends."""

from __future__ import annotations

import atexit
import logging
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakSet, finalize

from bridge.transaction.target import here

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from bridge.transaction.carrier import SessionTransaction
    from bridge.transaction.target import Buffer

__all__ = ["watch"]

log = logging.getLogger("bridge")


def watch(state: SessionTransaction, session: Session) -> None:
    """Say so when the session is dropped with jobs in it; send them when the process ends and it is open still."""
    finalize(session, _abandoned, state.buffer).atexit = False
    _left_at_exit().add(state)


def _abandoned(buffer: Buffer) -> None:
    """The session was dropped, or its process ends, without a commit and without being closed."""
    if buffer:
        log.error("jobs lost with a session that was neither committed nor closed count=%d first=%s", len(buffer.rows), buffer.rows[0].id)


@cache
def _left_at_exit() -> WeakSet[SessionTransaction]:
    """Transactions of sessions that jobs were made in: those still open when the interpreter ends are let go then, as if closed."""
    watched: WeakSet[SessionTransaction] = WeakSet()
    atexit.register(_leave, watched)
    return watched


def _leave(watched: WeakSet[SessionTransaction]) -> None:
    me = here()
    for state in list(watched):
        if state.owner[0] != me[0]:
            continue  # a copy that a fork has made
        if state.open and state.owner[:2] == me[:2]:
            try:
                state.leave()
            except Exception:
                log.exception("jobs of a session that is open when its process ends cannot be sent")
        _abandoned(state.buffer)
