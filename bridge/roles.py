"""Who may do what, from Python: the rights of the roles, and which tasks a role may enqueue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.client import connection_of
from bridge.queries import roles as stored

if TYPE_CHECKING:
    from bridge.queries.roles import Right, TaskRule

__all__ = ["allow_task", "disallow_task", "rights", "task_rules"]


def allow_task(role: str, pattern: str, *, connection: Any = None) -> str:
    """Allow a role of the database to enqueue these tasks; its first rule forbids it, and whoever is granted it, all others.

    Args:
        role: a login, or a role that logins are granted. Superusers are bound by nothing.
        pattern: a task's name, or a pattern in which ``*`` stands for anything.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        "created" or "unchanged".

    Raises:
        InvalidArgumentError: the pattern is none.
        NotFoundError: there is no such role.
        NotAllowedError: the caller has rules of its own.
    """
    return stored.allow_task(connection_of(connection), role, pattern)


def disallow_task(role: str, pattern: str, *, connection: Any = None) -> bool:
    """Take back what ``allow_task`` said. A role whose last rule goes may enqueue all tasks again.

    Returns:
        False when there was no such rule.

    Raises:
        NotFoundError: there is no such role.
        NotAllowedError: the caller has rules of its own.
    """
    return stored.disallow_task(connection_of(connection), role, pattern)


def task_rules(*, connection: Any = None) -> list[TaskRule]:
    """All rules, by role and pattern."""
    return stored.task_rules(connection_of(connection))


def rights(*, connection: Any = None) -> list[Right]:
    """What each role, and the public, may do in the schema, as Postgres keeps it."""
    return stored.rights(connection_of(connection))
