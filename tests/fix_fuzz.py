"""Strange values for every type that our functions take, a small world they meet, and what may come out of it.

What is called is read from the catalog, so that a new function is met by itself. BRIDGE_TEST_EFFORT=20 tries twenty times as much.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from fix_effort import EFFORT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from invariants import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fix_sql import Session

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# The gate tries the same values every time; with more effort they are new ones.
TRIES = settings(max_examples=4 * EFFORT, deadline=None, suppress_health_check=QUIET, derandomize=EFFORT == 1, database=None)
BROKEN = " union all ".join(f"select '{rule}' where exists ({query})" for rule, query in RULES.items())
ROUTINES = """
    select p.proname, p.prokind = 'p', p.provolatile = 'v', array(select unnest(p.proargtypes)::regtype::text),
      array(select n from unnest(p.proargnames, coalesce(p.proargmodes, array_fill('i'::"char", array[p.pronargs]))) a (n, m)
        where m = 'i'),
      p.pronargdefaults,
      array(select r.role from bridge.listed_rights() r where r.object = 'routine ' || p.oid::regprocedure order by r.role)
    from pg_catalog.pg_proc p where p.pronamespace = 'bridge'::regnamespace
      and exists (select from bridge.listed_rights() r where r.object = 'routine ' || p.oid::regprocedure)
    order by p.proname"""


@dataclass(frozen=True)
class Routine:
    """A function or procedure that a role may call."""

    name: str
    is_procedure: bool
    writes: bool
    types: tuple[str, ...]
    arguments: tuple[str, ...]
    defaults: int
    roles: tuple[str, ...]

    def call(self, given: Mapping[str, str | None]) -> str:
        """The statement, with a placeholder for each argument that is given."""
        types = dict(zip(self.arguments, self.types, strict=True))
        said = ", ".join(f"{name} => %({name})s::{types[name]}" for name in given)
        return f"call bridge.{self.name}({said})" if self.is_procedure else f"select r::text from bridge.{self.name}({said}) r"


def routines(db: Session) -> list[Routine]:
    """All that the roles may call, as the catalog has them."""
    return [Routine(*row[:3], tuple(row[3]), tuple(row[4]), row[5], tuple(row[6])) for row in db.rows(ROUTINES)]


class World:
    """Jobs in every state, and one of everything that has a name, for calls that mean something."""

    def __init__(self, db: Session) -> None:
        self.db = db
        db.do("select bridge.set_limit('limited', queue => 'limited', concurrency => 2)")
        db.do(
            "select bridge.schedule('nightly', '0 3 * * *', 'a.task'),"
            " bridge.schedule('called', '0 3 * * *', function => 'pg_catalog.now()')"
        )
        db.do("select bridge.set_webhook('hook', 'http://127.0.0.1:1/'), bridge.set_channel('channel', 'heard'), bridge.pause('paused')")
        db.do("select bridge.set_retry('a.*', max_attempts => 2), bridge.set_alert('failing', 'dead_letters', threshold => 1)")
        self.batch = db.one("select bridge.create_batch('batch', 'a.done')")
        self.ids: list[uuid.UUID] = [self.batch, uuid.UUID(int=0), uuid.uuid4()]
        self.seqs = [0, -1, 1 << 62]
        self.tokens: list[Any] = []
        for at, end in enumerate(["succeeded", "failed", "published", "claimed", "running"]):
            identity = db.enqueue(queue=f"q{at}", max_attempts=1, args=[1], kwargs={"tenant": 3})
            claim = db.claim(queue=f"q{at}")[0]
            self.tokens += [claim.token, db.shipment, db.drainer, db.worker]
            self.seqs.append(claim.seq)
            if end != "claimed":
                db.mark([claim])
            if end not in {"claimed", "published"}:
                run = db.start(claim)
                self.tokens.append(run)
                if end == "succeeded":
                    db.finish(claim, run, result=42)
                elif end == "failed":
                    db.fail(claim, run, final=True)
            self.ids.append(identity)
        first = db.enqueue(unique_key="key", serial_key="serial")
        cancelled = db.enqueue()
        db.do("select bridge.cancel(%s)", cancelled)
        self.ids += [first, cancelled, db.enqueue(depends_on=[first]), db.enqueue(delay="1 day"), db.enqueue(queue="paused"),
                     db.enqueue(batch=self.batch), db.enqueue(queue="limited")]  # fmt: skip
        db.do("select bridge.begin_chord('chord', '{}', '[]', 'celery', '1 day')")
        db.report()
        self.values = strange(self)
        running = {"p_seq": claim.seq, "seq": claim.seq, "run": run, "p_run": run, "p_token": claim.token, "p_id": identity}
        self.plain = PLAIN | {name: [str(value)] for name, value in running.items()} | {"id uuid": [*map(str, self.ids)]}


# JSON as a text of itself, because Postgres takes what Python does not write, and the other way round.
KEYS = [
    "task", "args", "kwargs", "queue", "priority", "run_at", "delay", "max_attempts", "backoff", "unique_key", "on_conflict",
    "depends_on", "timeout", "expires_at", "headers", "retry_on", "never_on", "soft_timeout", "deadline", "serial_key", "unique_until",
    "unique_for", "webhook", "on_parent_failure", "batch", "ids", "status", "error", "created_after", "finished_before",
    "changed_after", "all", "max_jobs", "base", "factor", "cap", "jitter", "url", "events", "secret", "result", "type", "message",
    "traceback", "name", "reason", "id", "key", "content_type", "called", "group", "lines", "level", "seq", "token", "run", "",
]  # fmt: skip
NAMES = [
    "celery", "paused", "limited", "q0", "nightly", "called", "hook", "channel", "failing", "batch", "chord", "a.task", "a.*", "key",
    "succeeded", "failed", "cancelled", "running", "queued", "skip", "raise", "replace", "run", "wait", "started", "finished",
    "SIGTERM", "warning", "info", "dead_letters", "bridge_worker", "worker", "test", "max_payload", "UTC", "Europe/Berlin",
    "0 3 * * *", "*/5 * * * *", "public.nowhere", "pg_catalog.now()", "http://127.0.0.1:1/", "all", "success", "always", "late",
    "stored", "STARTED", "SUCCESS", "cancel",
]  # fmt: skip
# What a sensible caller gives for an argument, by name, or name and type, else by type; without these a function would refuse the
# first thing that it looks at.
PLAIN = {
    "task": ["a.task"], "queue": ["celery", "q0", "q3"], "args": ["[]", "[1]"], "kwargs": ["{}"], "cron": ["0 3 * * *"],
    "timezone": ["UTC"], "priority": ["5"], "max_attempts": ["2"], "backoff": ["30", "[1, 60]"], "on_conflict": ["skip"],
    "headers": ["{}"], "name": ["nightly", "hook", "new"], "filter": ['{"all": true}', '{"queue": "q1"}'],
    "jobs": ['[{"task": "a.task", "args": [1]}, {"task": "a.task", "depends_on": [0]}]'], "max_jobs": ["10"], "n": ["3"],
    "kind": ["dead_letters"], "threshold": ["3"], "severity": ["warning"], "role": ["bridge_producer"], "pattern": ["a.*"],
    "url": ["http://127.0.0.1:1/"], "webhook": ['"http://127.0.0.1:1/"'], "events": ["{succeeded}"], "channel": ["heard"],
    "callback_on": ["success"], "level": ["info"], "fraction": ["0.5"], "ratio": ["0.5"], "minimum": ["10"], "probes": ["1"],
    "concurrency": ["2"], "rate": ["5"], "burst": ["5"], "key": ["kwargs.tenant"], "overlap": ["allow"], "missed": ["skip"],
    "function": ["pg_catalog.now()"], "on_parent_failure": ["cancel"], "unique_until": ["finished"], "status": ["succeeded"],
    "signal": ["TERM"], "p_signal": ["TERM"], "p_status": ["succeeded"], "p_name": ["window"], "p_queue": ["celery", "q1"],
    "p_task": ["a.task"], "p_args": ["[]"], "p_kwargs": ["{}"], "p_embed": ["{}"], "p_rank": ["9"], "p_limit": ["10"],
    "p_jobs": ['[{"id": "00000000-0000-0000-0000-0000000000aa", "job": {"task": "a.task"}}]'],
    "p_error": ['{"type": "ValueError", "message": "broken", "traceback": null}'], "p_stamps": ['{"header": ["stamp", "stamp"]}'],
    "p_options": ['{"max_attempts": 2}'], "p_links": ["{}"], "timeout": ["1 s"], "target": ["a.target"],
    "archive": ["pg_catalog.pg_class"], "p_templates": ['{"{\\"task\\": \\"a.task\\"}"}'], "p_which": ["{1}"], "p_keys": ["{key}"],
    "p_args text[]": ["{[]}"], "p_kwargs text[]": ['{"{}"}'], "jobs integer": ["10"], "text[]": ["{}", "{a,b}"], "text": ["a"],
    "interval": ["1 hour"], "timestamp with time zone": ["now"], "integer": ["1"], "boolean": ["true", "false"], "jsonb": ["{}"],
    "json": ["{}"],
}  # fmt: skip
STRANGE = [
    "", " ", "\n", "\t", "\x01\x1b[31m", "'", '"', "';--", "\\", "%", "%s %I %L", "$1", "{}", "[]", "null", "{", "a,b", "a b", "*",
    "(((", "[", "é→😀", "\u202e\u2028\ufeff", "1", "-1", "1e999", "NaN", "infinity", "bridge.calls", "bridge.x", "pg_", "x" * 256,
    "x" * 501, "y" * 70_000, "* * * * * *", "99 * * * *", "1-70 * * * *", "*/0 * * * *", "0 0 30 2 *", "http://", "http://[",
    "file:///etc/passwd", "http://h:99999/",
]  # fmt: skip
characters = st.characters(exclude_categories=("Cs",), exclude_characters="\x00")
texts = st.sampled_from(NAMES) | st.sampled_from(STRANGE) | st.text(characters, max_size=8)
TASK = '"a.task"'
numbers = st.sampled_from(["0", "1", "-1", "2", "7", "1.5", "1e40", "-1e400", "2147483648", "9223372036854775808", "100000"])


def documents(world: World) -> st.SearchStrategy[str]:
    """JSON of every shape, much of it like what our functions read."""
    leaf = st.sampled_from(["null", "true", "false"]) | numbers | texts.map(json.dumps) | st.sampled_from(world.ids).map(lambda i: f'"{i}"')
    leaf |= st.sampled_from(
        ['"12 parsecs"', '"-1 day"', '"1 hour"', '"infinity"', '"2031-01-31T12:00:00Z"', '"294276-12-31"', '"178000000 years"']
    )
    keys = st.sampled_from(KEYS) | texts

    def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        lists = st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        objects = st.dictionaries(keys, inner, max_size=4).map(written)
        jobs = st.lists(st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_size=2).map(
            lambda items: f"[{','.join(written({'task': TASK, **item}) for item in items)}]"
        )
        return lists | objects | jobs

    return st.recursive(leaf, nested, max_leaves=8) | st.just("[" * 2000 + "]" * 2000)


def written(items: Mapping[str, str]) -> str:
    """An object whose values are JSON already."""
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in items.items()) + "}"


def arrays(items: st.SearchStrategy[str | None]) -> st.SearchStrategy[str]:
    """Postgres's text of arrays: of one dimension, of two, of none, counted from elsewhere, with nulls."""

    def braced(values: list[str | None]) -> str:
        return "{" + ",".join("null" if v is None else '"' + re.sub(r'(["\\])', r"\\\1", v) + '"' for v in values) + "}"

    flat = st.lists(items | st.none(), max_size=4).map(braced)
    return flat | items.map(lambda v: "{" + braced([v]) + "," + braced([v]) + "}") | items.map(lambda v: "[5:5]=" + braced([v]))


def strange(world: World) -> dict[str, st.SearchStrategy[str]]:
    """Values of each type that our functions take, as Postgres reads them."""
    ids = st.sampled_from([*map(str, [*world.ids, *world.tokens])])
    integers = st.sampled_from([0, 1, -1, 2, 5, 10, 100, 10_001])
    json_only = st.sampled_from(['"\\u0000"', '{"\\u0000":1}', '"\\ud800"', '["\\udfff\\ud800"]', "1e999999", '{"a":1,"a":2}', " [ ] "])
    whole = {size: integers.map(str) | st.sampled_from([str(2 ** (size - 1) - 1), str(-(2 ** (size - 1)))]) for size in (16, 32, 64)}
    made: dict[str, st.SearchStrategy[str]] = {
        "text": texts,
        "uuid": ids,
        "boolean": st.sampled_from(["true", "false"]),
        "smallint": whole[16],
        "integer": whole[32],
        "bigint": whole[64] | st.sampled_from(world.seqs).map(str),
        "numeric": st.sampled_from(["0", "0.5", "1", "-1", "NaN", "Infinity", "-Infinity", "1e130000", "1e-1000"]),
        "double precision": st.sampled_from(["0", "0.5", "1", "-1", "NaN", "Infinity", "-Infinity", "1e308", "1e-320"]),
        "interval": st.sampled_from([
            "0", "1 us", "1 s", "-1 s", "1 hour", "1 day", "-1 day", "1 mon", "1 mon -30 days", "40 years", "178000000 years",
            "-178000000 years", "2562047788:00:54.775807", "-2147483648 days", "2147483647 days", "1000 years",
            "178956970 years 7 mons 2147483647 days", "-178956970 years -7 mons -2147483648 days",
        ]),
        "timestamp with time zone": st.sampled_from([
            "now", "infinity", "-infinity", "4713-01-01 BC", "294276-12-31 23:59:59.999999+00", "2031-05-05 00:00+00",
            "9999-12-31 23:59+00", "10000-01-01 00:00+00",
        ]),
        "date": st.sampled_from(["today", "infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2031-05-05"]),
        "bytea": st.sampled_from(["", "\\x00ff", "\\x5b5d"]),
        "regclass": st.sampled_from(["bridge.job", "pg_catalog.pg_class", "0", "4294967295", "bridge.jobs"]),
        "json": documents(world) | json_only,
        "jsonb": documents(world),
        "bridge.batch": st.just(str(world.db.one("select b::text from bridge.batch b"))),
    }  # fmt: skip
    made |= {f"{name}[]": arrays(made[name]) for name in ("uuid", "integer", "bigint")}
    made["text[]"] = arrays(texts | documents(world))
    return made


@st.composite
def calls(draw: st.DrawFn, routine: Routine, world: World) -> dict[str, str | None]:
    """Arguments for one call: those that must be given, some of the others; a part of them strange, null now and then."""
    needed = len(routine.arguments) - routine.defaults
    given: dict[str, str | None] = {}
    for at, (name, kind) in enumerate(zip(routine.arguments, routine.types, strict=True)):
        sort = draw(st.integers(0, 9))
        if sort < 5 and at >= needed:
            continue
        plain = world.plain.get(f"{name} {kind}") or world.plain.get(name) or world.plain.get(kind, [])
        if sort < 8 and plain:
            given[name] = draw(st.sampled_from(plain))
        else:
            given[name] = draw(world.values[kind]) if sort < 9 else None
    return given


def outcome(db: Session, routine: Routine, role: str, given: Mapping[str, str | None]) -> psycopg.Error | None:
    """Call it in a transaction that is rolled back; the error that came, a rule of the tables that is broken included."""
    with db.connection.transaction(force_rollback=True):
        try:
            with db.connection.transaction():
                db.do(f"set local role {role}")
                db.connection.execute(routine.call(given).encode(), given).fetchall()
                db.do("set constraints all immediate")
        except psycopg.Error as error:
            return error
        db.do("reset role")
        broken = db.rows(BROKEN) if routine.writes else []
        assert broken == [], f"{routine.call(given)} with {given} breaks: {broken}"
    return None


def contents(db: Session) -> dict[str, tuple[int, object]]:
    """What every table of ours holds, as a number of rows and a sum over them: equal where nothing was written."""
    tables = "select c.relname from pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind = 'r'"
    each = "select '{0}', count(*), sum(hashtextextended(t::text, 0)) from bridge.{0} t"
    found = db.rows(" union all ".join(each.format(name) for (name,) in db.rows(tables)))
    return {name: (count, total) for name, count, total in found}


def changed(before: dict[str, tuple[int, object]], after: dict[str, tuple[int, object]]) -> list[str]:
    """The tables that differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
