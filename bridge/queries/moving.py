"""What other schedulers have in a database: pg_cron's entries, the tables of django-celery-beat, and the functions that they call."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from bridge.errors import BridgeError, NotAllowedError, NotFoundError
from bridge.queries.answers import records, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.queries.connection import Connection

__all__ = ["Functions", "acting_as", "cron_entries", "cron_zone", "here", "is_made", "periodic_tasks", "switch_off"]

_OURS = r"^\s*(select|call)\s+bridge\.(tick|tick_loop|cleanup|cleanup_loop|run_calls)\s*\("


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions and types of one database, as the session's search_path shows them."""

    connection: Connection

    def signatures(self, schema: str | None, name: str) -> list[tuple[str, list[list[str]]]]:
        """The schema, and names and types of what goes in, of each function of this name; without a schema those that are visible."""
        query = """
            select n.nspname as schema, coalesce((
              select jsonb_agg(jsonb_build_array(coalesce(p.proargnames[o.place], ''), format_type(o.type, null)) order by o.place)
              from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality o (type, place)
              where coalesce(p.proargmodes[o.place], 'i') in ('i', 'b', 'v')), '[]') as parameters
            from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where p.proname = %(name)s and case when %(schema)s::text is null then pg_catalog.pg_function_is_visible(p.oid)
              else n.nspname = %(schema)s end"""
        found = records(self.connection, query, {"schema": schema, "name": name})
        return [(row["schema"], row["parameters"]) for row in found]

    def type_name(self, text: str) -> str | None:
        """The name by which the database calls a type; None when there is none."""
        try:
            with self.connection.transaction():
                query = "select pg_catalog.format_type(to_regtype(%(text)s), null)"
                return value(self.connection, query, {"text": text})  # type: ignore[no-any-return]
        except (BridgeError, psycopg.Error):
            return None  # what is no type at all is an error of syntax


def here(connection: Connection) -> dict[str, str]:
    """The name of the database, and the server that the session reaches it on."""
    info = connection.info
    return {"dbname": info.dbname, "host": info.host, "port": str(info.port)}


def cron_zone(connection: Connection) -> str:
    """Whose clock pg_cron reads expressions by."""
    zone = value(connection, "select coalesce(nullif(current_setting('cron.timezone', true), ''), 'GMT')", {})
    return "UTC" if zone == "GMT" else str(zone)


def cron_entries(connection: Connection, database: str) -> list[dict[str, Any]]:
    """The entries of pg_cron for a database, those of ours left out.

    Raises:
        NotFoundError: pg_cron is not in the database of this connection.
        NotAllowedError: its table may not be read.
    """
    query = """
        select j.jobid, j.jobname, j.schedule, j.command, j.username, j.active from cron.job j
        where j.database = %(database)s and j.command !~* %(ours)s and coalesce(j.jobname, '') !~ '^bridge-log-' order by j.jobid"""
    try:
        return records(connection, query, {"database": database, "ours": _OURS})
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise NotFoundError(
            "there is no table cron.job here", "pg_cron lives in one database of a server: give that one as --source-url"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotAllowedError(f"pg_cron's entries may not be read: {error.diag.message_primary}", "grant usage and select") from error


def switch_off(connection: Connection, job: int) -> str:
    """Have pg_cron run an entry no more; what it says against that, empty when it is done."""
    try:
        with connection.transaction():
            value(connection, "select cron.alter_job(job_id => %(job)s, active => false)", {"job": job})
    except (BridgeError, psycopg.Error) as error:
        return str(error).splitlines()[0]
    return ""


def periodic_tasks(connection: Connection) -> list[dict[str, Any]]:
    """The rows of django-celery-beat, each as JSON beside what says when it is due.

    Raises:
        NotFoundError: its tables are not in this database.
    """
    query = """
        select to_jsonb(p) as task, to_jsonb(c) as crontab, to_jsonb(i) as interval, to_jsonb(s) as solar, to_jsonb(k) as clocked
        from django_celery_beat_periodictask p
        left join django_celery_beat_crontabschedule c on c.id = p.crontab_id
        left join django_celery_beat_intervalschedule i on i.id = p.interval_id
        left join django_celery_beat_solarschedule s on s.id = p.solar_id
        left join django_celery_beat_clockedschedule k on k.id = p.clocked_id order by p.name"""
    try:
        return records(connection, query, {})
    except psycopg.errors.UndefinedTable as error:
        raise NotFoundError(
            f"the tables of django-celery-beat are not here: {error.diag.message_primary}", "give their database as --source-url"
        ) from error


def is_made(connection: Connection, name: str) -> bool:
    """Whether there is a schedule of this name already."""
    query = "select exists (select from bridge.schedules s where s.name = %(name)s)"
    return bool(value(connection, query, {"name": name}))


@contextmanager
def acting_as(connection: Connection, role: str) -> Iterator[None]:
    """Act as a role until the block ends; an empty one is the session's own.

    Raises:
        NotAllowedError: the session may not, or the role may not do what the block does.
    """
    own = value(connection, "select current_user::text", {})
    if role in {"", own}:
        yield
        return
    before = str(value(connection, "select current_setting('role')", {}))
    try:
        connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        yield
        connection.execute(sql.SQL("set local role {}").format(sql.SQL("none") if before == "none" else sql.Identifier(before)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotAllowedError(
            f"it runs as role {role}, and {own} cannot make it so: {error.diag.message_primary}",
            f"import as {role}, or as a superuser; {role} needs what bridge_operator may",
        ) from error
    except psycopg.errors.InvalidParameterValue as error:
        raise NotAllowedError(f"it runs as role {role}, which does not exist here", "create it, or change the entry") from error
