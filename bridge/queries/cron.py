"""What the doctor asks of pg_cron: reads only, each bounded in what it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.queries.health import many, one

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["Cron", "CronEntry", "Stray", "entries", "state", "strays"]


@dataclass(frozen=True, slots=True)
class Cron:
    """The state of pg_cron.

    Attributes:
        version: of the extension in this database; None when it is not created.
        available: its files are on the server.
        loaded_for: the database that its library is bound to; None when it is not loaded, or this role may not know.
        lacks: the grants that this role lacks for it; None when it has them.
        launcher: its launcher runs.
    """

    version: str | None
    available: bool
    loaded_for: str | None
    lacks: str | None
    launcher: bool
    database: str


@dataclass(frozen=True, slots=True)
class CronEntry:
    """One of our entries, and how its last ended run went; all None when it has no run among the latest of all entries."""

    job: int
    name: str
    role: str
    schedule: str
    active: bool
    failures: int
    last_status: str | None
    last_message: str | None
    last_age: float | None


@dataclass(frozen=True, slots=True)
class Stray:
    """An entry of ours for a database that is gone, or the second one of its name."""

    job: int
    name: str
    why: str


def state(connection: Connection) -> Cron:
    """How much of pg_cron is there, without touching its schema."""
    query = """
        select (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_cron'),
          exists (select from pg_catalog.pg_available_extensions a where a.name = 'pg_cron'),
          (select s.setting from pg_catalog.pg_settings s where s.name = 'cron.database_name'), bridge.cron_lacks(),
          -- The launcher's name is shown to every role, its type is not.
          exists (select from pg_catalog.pg_stat_activity a
            where a.application_name = 'pg_cron scheduler' or a.backend_type = 'pg_cron launcher'),
          current_database()"""
    return Cron(*one(connection, query))


def entries(connection: Connection) -> list[CronEntry]:
    """Our entries, with their ended runs among the latest 500 of all entries: only ``runid`` has an index."""
    query = """
        select c.jobid, c.jobname, c.username, c.schedule, c.active, coalesce(r.failures, 0)::integer, r.status, r.message,
          extract(epoch from clock_timestamp() - r.ended_at)::float8
        from cron.job c left join (
          select d.jobid, count(*) filter (where d.status = 'failed') as failures,
            (array_agg(d.status order by d.runid desc))[1] as status,
            (array_agg(d.return_message order by d.runid desc))[1] as message,
            (array_agg(d.end_time order by d.runid desc))[1] as ended_at
          from (select * from cron.job_run_details order by runid desc limit 500) d
          where d.status in ('failed', 'succeeded') group by d.jobid
        ) r on r.jobid = c.jobid
        where c.jobname = any (bridge.cron_names())
        order by c.jobname desc, c.jobid"""
    return [CronEntry(*row) for row in many(connection, query)]


def strays(connection: Connection) -> list[Stray]:
    """Entries of ours, of all databases of the cluster, that should not be there; only those that this role may see."""
    query = """
        select c.jobid, c.jobname, case when d.datname is null then format('database %s is gone', c.database)
            else format('role %s has an entry of this name too', c.others) end
        from (select j.jobid, j.jobname, j.database, min(j.username) over same as others, row_number() over (same order by j.jobid) as place
            from cron.job j where j.jobname ~ '^bridge-(tick|cleanup|calls|log)-' window same as (partition by j.jobname)) c
          left join pg_catalog.pg_database d on d.datname = c.database
        where d.datname is null or c.place > 1 order by c.jobname"""
    return [Stray(*row) for row in many(connection, query)]
