"""Revokes that come from a sender that has not joined (a Flower of its own, another application): the worker cancels the rows."""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.worker.control import Panel

from bridge.application import membership
from bridge.control import DONE, REVOKES, revoke_rows
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["heed_commands"]

log = logging.getLogger("bridge.worker")


def heed_commands() -> None:
    """Wrap the worker's own commands that revoke; those that are wrapped already stay as they are."""
    for name in REVOKES:
        theirs = Panel.data[name]
        if not getattr(theirs, "heeds_rows", False):
            Panel.data[name] = _heeding(name, theirs)


def _heeding(name: str, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def command(state: Any, **arguments: Any) -> Any:
        done = arguments.pop(DONE, False)
        joined = membership(state.app)
        if joined is not None and not done:
            try:
                revoke_rows(joined, name, arguments)
            except BridgeError as error:
                log.error("rows not cancelled, repeat the command command=%s error=%s", name, error)  # noqa: TRY400 - the reason is enough
        return theirs(state, **arguments)

    command.heeds_rows = True  # type: ignore[attr-defined]
    return command
