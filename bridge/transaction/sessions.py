"""SQLAlchemy: jobs join the open transaction of a Session, or of a Connection that the caller names; asyncio's as well.

What is called inside of a transaction is kept in memory and sent when it commits, so a call from a coroutine, which may not wait for
the database, works like any other. SQLAlchemy's events tell us of commits, rollbacks and savepoints.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, TwoPhaseTransaction
from sqlalchemy.orm import Session

from bridge.errors import InvalidArgumentError
from bridge.transaction.carrier import ConnectionTransaction, SessionTransaction
from bridge.transaction.target import here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.queries.connection import Connections
    from bridge.transaction.carrier import SqlalchemyTransaction
    from bridge.transaction.target import Target

__all__ = ["fresh", "hook", "joinable", "leave", "target_of"]

_KEY = "bridge"  # in the dictionaries that SQLAlchemy leaves to users of a Session and of a Connection
_MENTION = "bridge."  # a statement with this in it may read jobs

# The open transactions that this thread or asyncio task has used, the latest last.
_open: ContextVar[tuple[SessionTransaction, ...]] = ContextVar("bridge_sessions", default=())


def joinable(own: Connections) -> Target | None:
    """The open transaction that a plain call joins: the one used last here, by this thread and task, on our database."""
    me = here()
    for state in reversed(_open.get()):
        if state.open and state.owner == me and state.can_commit() and state.is_ours(own):
            return state.plainly(own)
    return None


def target_of(given: Any) -> Target:
    """The transaction of a Session, a Connection, or one of their asyncio or scoped forms; it begins when none is open.

    Raises:
        InvalidArgumentError: it is something else of SQLAlchemy's.
    """
    hook()
    holder = _inside(given)
    if isinstance(holder, Session | Connection):
        _refuse_two_phases(holder)
    if isinstance(holder, Session):
        if not holder.in_transaction():
            holder.begin()
        if _KEY not in holder.info:  # its transaction began before we were asked to listen
            _created(holder, _root(holder))
            for connection in getattr(_root(holder), "_connections", ()):
                if isinstance(connection, Connection):
                    _begun(holder, _root(holder), connection)
        found: SessionTransaction = holder.info[_KEY]
        return found.named()
    if isinstance(holder, Connection):
        if not holder.in_transaction():
            holder.begin()
        held = _state_of(holder)
        if held is None:
            held = holder.info[_KEY] = ConnectionTransaction(holder)
        return held.named()
    raise InvalidArgumentError(f"connection is a {type(given).__name__}", "pass a Session or a Connection of SQLAlchemy, or an asyncio one")


def _refuse_two_phases(holder: Session | Connection) -> None:
    two_phases = holder.twophase if isinstance(holder, Session) else isinstance(holder.get_transaction(), TwoPhaseTransaction)
    if two_phases:
        raise InvalidArgumentError(
            "a two-phase transaction cannot take jobs: postgres prepares none that wakes somebody", "use one with a plain commit"
        )


def _inside(given: Any) -> Any:
    """The Session or Connection that does the work."""
    if callable(getattr(given, "registry", None)):  # scoped_session, async_scoped_session
        given = given.registry()
    return getattr(given, "sync_session", None) or getattr(given, "sync_connection", None) or given


def _root(session: Session) -> Any:
    transaction = session.get_transaction()
    while transaction is not None and transaction.parent is not None:
        transaction = transaction.parent
    return transaction


@contextmanager
def fresh() -> Iterator[None]:
    """Begin with no open session; at the end, let go of jobs in sessions that this block used and left open."""
    token = _open.set(())
    try:
        yield
    finally:
        try:
            leave()
        finally:
            _open.reset(token)


def leave() -> None:
    """Let go of jobs in sessions that are open here, as if they were closed now.

    Raises:
        ServerError: Postgres is away; they are still there.
    """
    for state in _open.get():
        if state.open:
            state.leave()


@cache
def hook() -> None:
    """Listen to all sessions and engines of this process."""
    listeners: dict[Any, dict[str, Callable[..., Any]]] = {
        Session: {
            "after_transaction_create": _created, "after_begin": _begun, "after_attach": _attached, "before_commit": _before_commit,
            "after_rollback": _rolled_back, "after_transaction_end": _ended,
        },
        Engine: {
            "before_cursor_execute": _statement, "savepoint": _savepoint, "rollback_savepoint": _back, "commit": _commit,
            "rollback": _rollback,
        },
    }  # fmt: skip
    for target, named in listeners.items():
        for name, listener in named.items():
            event.listen(target, name, listener)


def _touch(state: SessionTransaction) -> None:
    """This thread and task used it just now."""
    state.owner = here()
    others = _open.get()
    if others[-1:] != (state,):
        _open.set((*(other for other in others if other.open and other is not state), state))


def _created(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        session.info[_KEY] = SessionTransaction(session)
        _touch(session.info[_KEY])
    elif transaction.nested and _KEY in session.info:
        # The savepoint comes later, with its first statement: what belongs before it is sent now.
        session.info[_KEY].flush_before(transaction.parent)


def _begun(session: Session, transaction: Any, connection: Connection) -> None:
    del transaction
    state = session.info.get(_KEY)
    if state is not None:
        connection.info[_KEY] = state
        state.uses(connection)
        _touch(state)


def _attached(session: Session, instance: object) -> None:
    del instance
    state = session.info.get(_KEY)
    if state is not None:
        state.changed = True
        _touch(state)


def _before_commit(session: Session) -> None:
    state = session.info.get(_KEY)
    if state is not None and not session.in_nested_transaction():
        state.commit()


def _rolled_back(session: Session) -> None:
    state = session.info.get(_KEY)
    if state is not None:
        state.discard()


def _ended(session: Session, transaction: Any) -> None:
    if transaction.parent is None and (state := session.info.pop(_KEY, None)) is not None:
        state.end()


def _state_of(connection: Connection) -> SqlalchemyTransaction | None:
    """The transaction of this connection; pools hand on a connection's dictionary, so one that ended may still stand there."""
    if connection.closed or connection.invalidated:
        return None
    state: SqlalchemyTransaction | None = connection.info.get(_KEY)
    return state if state is not None and state.open and state.is_on(connection) else None


def _statement(connection: Connection, cursor: Any, statement: str, *others: Any) -> None:
    del cursor, others
    state = _state_of(connection)
    if isinstance(state, SessionTransaction):
        _touch(state)
    if state is not None and state.buffer and _MENTION in statement:
        state.flush(connection)


def _savepoint(connection: Connection, name: str) -> None:
    del name
    state = _state_of(connection)
    if state is not None and not state.in_savepoint():
        state.flush(connection)


def _back(connection: Connection, *names: Any) -> None:
    del names
    state = _state_of(connection)
    if state is not None:
        state.discard()


def _commit(connection: Connection) -> None:
    state = _state_of(connection)
    if state is not None:
        state.flush(connection)


def _rollback(connection: Connection) -> None:
    state = _state_of(connection)
    if state is not None:
        state.rolling_back(connection)
