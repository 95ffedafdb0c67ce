"""What the doctor asks of Postgres: reads only, each bounded in what it touches."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from bridge.errors import ServerError
from bridge.queries.connection import translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date, datetime

    from bridge.queries.connection import Connection

__all__ = [
    "MOST_STUCK",
    "Advice",
    "Holder",
    "Process",
    "ReadyHead",
    "Refused",
    "Server",
    "StuckGroup",
    "Tick",
    "advice",
    "connections",
    "drainers",
    "graces",
    "many",
    "may_see_sessions",
    "missing_days",
    "one",
    "published_queues",
    "queues_in_use",
    "ready_heads",
    "refused_messages",
    "server",
    "shut_out",
    "snapshot_holders",
    "stuck",
    "tick_state",
    "workers",
]

MOST_STUCK = 1000  # stuck jobs that are counted


@dataclass(frozen=True, slots=True)
class Server:
    """The database server, and what its clock says."""

    version: str
    standby: bool
    read_only: bool
    clock: datetime


@dataclass(frozen=True, slots=True)
class Tick:
    """Who ticked last and how many seconds ago (None: nobody ever), and the seconds that should lie between two ticks."""

    source: str
    age: float | None
    interval: float


@dataclass(frozen=True, slots=True)
class Process:
    """A drainer or worker: seconds since its last report and by which its clock is ahead; a stopped one said good-bye."""

    name: str
    age: float
    stopped: bool
    alive: bool
    skew: float
    queues: list[str]


@dataclass(frozen=True, slots=True)
class Refused:
    """How many messages workers have refused for a reason; seconds since the last, and the name of who refused it."""

    reason: str
    count: int
    worker: str
    age: float


@dataclass(frozen=True, slots=True)
class ReadyHead:
    """The job of a queue and priority that is published next: how many seconds it has been due, and what may hold it.

    ``room`` is how many more jobs of the queue may be published now, None when there is no bound.
    """

    queue: str
    age: float
    paused: bool
    room: int | None


@dataclass(frozen=True, slots=True)
class StuckGroup:
    """Stuck jobs of one status: how many (MOST_STUCK are counted in all), the age of the oldest in seconds, and one of them."""

    status: str
    count: int
    age: float
    example: str


@dataclass(frozen=True, slots=True)
class Holder:
    """What keeps dead rows from being vacuumed.

    Attributes:
        kind: session, prepared or slot.
        handle: pid, or the quoted name of the prepared transaction or slot.
        age: seconds since its transaction began; None for what has no such time.
        lag: transactions since then.
        active: whether somebody reads the slot; True for the others.
    """

    kind: str
    handle: str
    what: str
    age: float | None
    lag: int
    active: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """One row of ``bridge.upkeep()``: error, warning or info."""

    kind: str
    severity: str
    found: str
    remedy: str


def server(connection: Connection) -> Server:
    """Version, whether it takes writes, and its clock."""
    query = """
        select split_part(current_setting('server_version'), ' ', 1), pg_is_in_recovery(),
          current_setting('transaction_read_only')::boolean, clock_timestamp()"""
    version, standby, read_only, clock = one(connection, query)
    return Server(version, standby, read_only, clock)


def shut_out(connection: Connection) -> str | None:
    """This role's name when it may not use schema bridge; None when it may, or when there is no such schema."""
    query = "select case when not has_schema_privilege(to_regnamespace('bridge'), 'usage') then current_user::text end"
    role: str | None = one(connection, query)[0]
    return role


def tick_state(connection: Connection) -> Tick:
    """The tick as it last was."""
    query = """
        select t.source, case when isfinite(t.ticked_at) then extract(epoch from clock_timestamp() - t.ticked_at)::float8 end,
          extract(epoch from bridge.seconds('tick_interval'))::float8
        from bridge.tick_state t"""
    return Tick(*one(connection, query))


def drainers(connection: Connection, silent: float) -> list[Process]:
    """All that reported in the last day; alive are those that did within ``silent`` seconds."""
    query = """
        select d.name, a.age, d.status = 'stopped', d.status <> 'stopped' and a.age <= %(silent)s,
          extract(epoch from d.clock_skew)::float8, '{}'::text[]
        from bridge.drainers d, lateral (select extract(epoch from clock_timestamp() - d.seen_at)::float8) a (age)
        where a.age < 86400 order by d.name"""
    return [Process(*row) for row in many(connection, query, {"silent": silent})]


def workers(connection: Connection, silent: float) -> list[Process]:
    """As `drainers`; ``silent`` 0 takes the setting ``worker_lost``."""
    query = """
        select w.name, a.age, w.status = 'stopped',
          w.status <> 'stopped'
            and a.age <= coalesce(nullif(%(silent)s::float8, 0), extract(epoch from bridge.seconds('worker_lost'))::float8),
          extract(epoch from w.clock_skew)::float8, w.queues
        from bridge.workers w, lateral (select extract(epoch from clock_timestamp() - w.seen_at)::float8) a (age)
        where a.age < 86400 order by w.name"""
    return [Process(*row) for row in many(connection, query, {"silent": silent})]


def unbundled(connection: Connection) -> list[tuple[str, str]]:
    """Call ``bridge.unbundled``: tasks that ask for bundles in vain, each with the option that is in the way."""
    return [(row[0], row[1]) for row in many(connection, "select task, option from bridge.unbundled()")]


def refused_messages(connection: Connection) -> list[Refused]:
    """Messages that workers have refused, by reason, where the last was within an hour."""
    query = """
        select r.reason, r.count, r.worker, extract(epoch from clock_timestamp() - r.refused_at)::float8 from bridge.refused_messages r
        where r.refused_at > clock_timestamp() - interval '1 hour' order by r.reason"""
    return [Refused(*row) for row in many(connection, query)]


def published_queues(connection: Connection) -> set[str]:
    """Queues with jobs that are with the broker and not started."""
    return {row[0] for row in many(connection, "select distinct i.queue from bridge.inflight i where i.state = 'published'")}


def queues_in_use(connection: Connection) -> set[str]:
    """Queues with jobs that are due, with the broker or running, and those that have an entry of their own."""
    query = """
        select distinct i.queue from bridge.inflight i
        union select bridge.ready_queues()
        union select q.name from bridge.queue q"""
    return {row[0] for row in many(connection, query)}


def ready_heads(connection: Connection) -> list[ReadyHead]:
    """The first ready job of each queue and priority, by one index probe each: a million others are not touched."""
    query = """
        select h.queue, extract(epoch from clock_timestamp() - h.since)::float8, bridge.is_paused(h.queue), bridge.room(h.queue)
        from bridge.ready_heads() h"""
    return [ReadyHead(*row) for row in many(connection, query)]


def stuck(connection: Connection) -> list[StuckGroup]:
    """Jobs that are published or running for longer than the setting ``stuck_after``; those that wait before that are `ready_heads`."""
    query = """
        select s.state, s.jobs, extract(epoch from clock_timestamp() - s.since)::float8, s.example
        from bridge.stuck_in_flight(clock_timestamp() - bridge.seconds('stuck_after'), p_most => %(most)s) s"""
    return [StuckGroup(*row) for row in many(connection, query, {"most": MOST_STUCK})]


def graces(connection: Connection) -> tuple[float, float, float]:
    """The settings ``heartbeat``, ``republish_grace`` and ``worker_lost``, in seconds."""
    heartbeat, grace, lost = one(
        connection,
        "select bridge.setting('heartbeat')::float8, bridge.setting('republish_grace')::float8, bridge.setting('worker_lost')::float8",
    )
    return heartbeat, grace, lost


def snapshot_holders(connection: Connection) -> list[Holder]:
    """Sessions of this database and standbys, prepared transactions, and replication slots that hold an old transaction, oldest first."""
    query = """
        select 'session', a.pid::text, format('pid %%s (%%s, %%s) holds a snapshot or writes', a.pid,
            coalesce(nullif(a.application_name, ''), a.backend_type), coalesce(a.state, 'no state')),
          extract(epoch from clock_timestamp() - a.xact_start)::float8, greatest(age(a.backend_xmin), age(a.backend_xid)), true
        from pg_catalog.pg_stat_activity a
        where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
          and (a.datname = current_database() or a.backend_type = 'walsender') and a.backend_type <> 'autovacuum worker'
        union all
        select 'prepared', quote_literal(p.gid), format('prepared transaction %%L is open', p.gid),
          extract(epoch from clock_timestamp() - p.prepared)::float8, age(p.transaction), true
        from pg_catalog.pg_prepared_xacts p where p.database = current_database()
        union all
        select 'slot', quote_literal(s.slot_name), concat(format('replication slot %%s is %%s', s.slot_name,
              case when s.active then 'in use' else 'read by nobody' end), ' and holds transactions back by ' || x.lag,
            ' and holds ' || case when x.wal > 1073741824 then pg_size_pretty(x.wal) end || ' of WAL'),
          null, coalesce(x.lag, 0), s.active and coalesce(x.wal, 0) <= 1073741824
        from pg_catalog.pg_replication_slots s, lateral (select greatest(age(s.xmin), age(s.catalog_xmin)),
          case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) end) x (lag, wal)
        where x.lag is not null or x.wal > 1073741824
        order by 5 desc"""
    return [Holder(*row) for row in many(connection, query, {})]


def advice(connection: Connection) -> list[Advice]:
    """What the database needs, worst first."""
    return [Advice(*row) for row in many(connection, "select kind, severity, found, remedy from bridge.upkeep()", {})]


def may_see_sessions(connection: Connection) -> bool:
    """Whether this role sees what other roles' sessions do."""
    return bool(one(connection, "select pg_has_role('pg_read_all_stats', 'usage')")[0])


def connections(connection: Connection) -> tuple[int, int]:
    """Connections in use, and how many ordinary roles may have."""
    query = """
        select (select sum(d.numbackends) from pg_catalog.pg_stat_database d)::integer,
          current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer"""
    used, most = one(connection, query)
    return used, most


def missing_days(connection: Connection, ahead: int) -> tuple[list[tuple[str, date]], list[tuple[str, str]]]:
    """Days (UTC) from today on without a partition, as table and day; and partitions left half detached, as parent and child."""
    pending = """
        select i.inhparent::regclass::text, i.inhrelid::regclass::text from pg_catalog.pg_inherits i
        where i.inhdetachpending and i.inhparent = any (array['bridge.finished', 'bridge.attempt', 'bridge.log_line']::regclass[])"""
    missing = many(connection, "select d.name, d.day from bridge.missing_days(%(ahead)s) d", {"ahead": ahead})
    return [(name, day) for name, day in missing], [(parent, child) for parent, child in many(connection, pending)]


def one(connection: Connection, query: LiteralString) -> tuple[Any, ...]:
    """The first row of an answer."""
    return many(connection, query)[0]


def many(connection: Connection, query: LiteralString, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """An answer; PermissionError for a missing right, ServerError for what does not come in time."""
    with translated(), _reasons_named():
        return connection.execute(query, values).fetchall()


@contextmanager
def _reasons_named() -> Iterator[None]:
    """Tell a missing right (PermissionError) and a lock that somebody holds from the faults that are looked for."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionError(error.diag.message_primary or "permission denied") from error
    except psycopg.errors.QueryCanceled as error:
        hint = "is it busy, or does somebody hold a lock: select pid, query from pg_stat_activity where wait_event_type = 'Lock'"
        raise ServerError("the database did not answer in time", hint) from error
