"""Ending a job in the transaction of its own task, and asking what became of that.

What goes through the caller's own connection is a statement whose parameters are all texts, which any driver of Postgres can run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.queries.answers import value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["COMPLETE", "HOLD", "KEEP_UNTOLD", "ask", "by_hand", "fate", "life_of_server", "told", "was_completed", "written"]

# The places of parameters are numbered, for whoever writes them as its driver does.
HOLD = "select bridge.hold_run({0}::text::bigint, {1}::text::uuid, {2}::text::uuid)"
_LIFE = "extract(epoch from pg_postmaster_start_time())::text"
_RUN = "{0}::text::bigint, {1}::text::uuid, {2}::text::json, {3}::text::jsonb, {4}::text::uuid"
COMPLETE = f"select {_LIFE} from bridge.complete_run({_RUN})"  # gives the life of the server

KEEP_UNTOLD = "select bridge.keep_untold({0}::text::bigint, {1}::text::uuid, {2}::text::json)"


def written(statement: str, placeholder: str) -> str:
    """A statement as a driver takes it: with ``%s`` the parameters go by their order in the text, with ``$1`` by their numbers."""
    if placeholder == "%s":
        return statement.format(*["%s"] * 5)
    return statement.format("$1", "$2", "$3", "$4", "$5")


def ask(connection: Connection, statement: str, values: Sequence[str | None]) -> Any:
    """Run one of our statements on a caller's psycopg connection, whatever rows that makes; its single value."""
    return value(connection, written(statement, "%s"), values)


def fate(connection: Connection, seq: int, run: UUID, token: str) -> str:
    """What became of a run that was completed: ``completed``, ``running`` (rolled back), ``open`` (not decided yet), or ``over``."""
    return str(value(connection, "select bridge.fate_of_run(%s, %s, %s)", (seq, run, token)))


def life_of_server(connection: Connection) -> str:
    """Which life of which server this is: another after a failover, and after a restart."""
    return str(value(connection, f"select {_LIFE}"))


def was_completed(connection: Connection, seq: int, token: str) -> bool:
    """Whether a run whose process is dead had completed its job; waits for what it has left on its way."""
    return bool(value(connection, "select bridge.was_completed(%s, %s)", (seq, token)))


def told(connection: Connection, identity: UUID) -> None:
    """A part of a chord is counted in the application's own result backend."""
    value(connection, "select bridge.told(%s)", (identity,))


def by_hand(connection: Connection, identity: UUID, result: str | None) -> None:
    """Call ``bridge.complete`` for a job that has not started; the result is JSON text."""
    value(connection, "select bridge.complete(id => %s, result => %s::jsonb)", (identity, result))
