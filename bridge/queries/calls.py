"""Performing calls of SQL functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.queries.answers import value
from bridge.queries.connection import endless, is_pooled, translated

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["run_calls", "stop_calls", "wait"]


def wait(connection: Connection) -> bool:
    """Whether calls are due that a drainer should perform."""
    return bool(value(connection, "select bridge.calls_wait()"))


def run_calls(connection: Connection) -> None:
    """Call ``bridge.run_calls`` on a connection that does nothing else: it commits, and takes as long as the functions take."""
    with translated(), endless(connection):
        if not is_pooled(connection):
            connection.execute("set statement_timeout = 0")
        connection.execute("call bridge.run_calls()", prepare=False)


def stop_calls(connection: Connection) -> int:
    """Cancel calls that are over, as far as this role may; how many."""
    return int(value(connection, "select bridge.stop_calls()"))
