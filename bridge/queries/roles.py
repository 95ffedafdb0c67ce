"""Roles: who is granted them, what they may do, and which tasks they may enqueue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from bridge.queries.answers import value
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import datetime

    from bridge.queries.connection import Connection

__all__ = ["Member", "Right", "TaskRule", "allow_task", "disallow_task", "members", "rights", "task_rules"]

_ROLES = ("producer", "worker", "operator", "viewer", "tenant")


@dataclass(frozen=True, slots=True)
class Right:
    """What a role may do with one object, in the words of GRANT.

    Attributes:
        role: one of the bridge's roles, or public.
        privilege: such as ``EXECUTE``, ``SELECT`` or ``UPDATE (value)``.
        object: such as ``table bridge.setting``.
    """

    role: str
    privilege: str
    object: str


@dataclass(frozen=True, slots=True)
class Member:
    """A role that has been granted one of the bridge's, directly or through others.

    Attributes:
        role: the bridge's.
        member: who has it; None where nobody has.
        login: whether programs log in as this member.
        direct: whether it was granted the role itself.
    """

    role: str
    member: str | None
    login: bool
    direct: bool


@dataclass(frozen=True, slots=True)
class TaskRule:
    """Tasks that a role may enqueue.

    Attributes:
        role: its name.
        pattern: of tasks, ``*`` stands for anything.
        role_exists: False when the role was dropped; the rule says nothing then.
        changed_at: when it was made.
    """

    role: str
    pattern: str
    role_exists: bool
    changed_at: datetime


def allow_task(connection: Connection, role: str, pattern: str) -> str:
    """Call ``bridge.allow_task``; created or unchanged."""
    return str(value(connection, "select bridge.allow_task(%s, %s)", (role, pattern)))


def disallow_task(connection: Connection, role: str, pattern: str) -> bool:
    """Call ``bridge.disallow_task``; False when there was no such rule."""
    return bool(value(connection, "select bridge.disallow_task(%s, %s)", (role, pattern)))


def task_rules(connection: Connection) -> list[TaskRule]:
    """All rows of the view ``bridge.task_rules``."""
    with translated(), connection.cursor(row_factory=class_row(TaskRule)) as cursor:
        return cursor.execute("select role, pattern, role_exists, changed_at from bridge.task_rules order by role, pattern").fetchall()


def rights(connection: Connection) -> list[Right]:
    """Ask ``bridge.rights``."""
    with translated(), connection.cursor(row_factory=class_row(Right)) as cursor:
        return cursor.execute("select role, privilege, object from bridge.rights() order by object, privilege, role").fetchall()


def members(connection: Connection) -> list[Member]:
    """Who has been granted the bridge's roles; a row without a member for each that nobody has."""
    query = """
        with recursive given (role, member, direct) as (
          select m.roleid, m.member, true from pg_catalog.pg_auth_members m
          join pg_catalog.pg_roles r on r.oid = m.roleid and r.rolname in (select unnest(%(roles)s::text[]))
          union
          select g.role, m.member, false from given g join pg_catalog.pg_auth_members m on m.roleid = g.member)
        select r.rolname::text as role, m.rolname::text as member, coalesce(m.rolcanlogin, false) as login,
          coalesce(bool_or(g.direct), false) as direct
        from pg_catalog.pg_roles r left join given g on g.role = r.oid left join pg_catalog.pg_roles m on m.oid = g.member
        where r.rolname in (select unnest(%(roles)s::text[]))
        group by r.rolname, m.rolname, m.rolcanlogin order by r.rolname, m.rolname"""
    with translated(), connection.cursor(row_factory=class_row(Member)) as cursor:
        return cursor.execute(query, {"roles": [f"bridge_{name}" for name in _ROLES]}).fetchall()
