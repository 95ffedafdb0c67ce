"""A session on a new database and short names for what drainers and workers do to it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from invariants import assert_sound

if TYPE_CHECKING:
    from collections.abc import Iterator

CASTS = {
    "args": "jsonb", "kwargs": "jsonb", "backoff": "jsonb", "headers": "jsonb", "delay": "interval", "timeout": "interval",
    "run_at": "timestamptz", "expires_at": "timestamptz", "depends_on": "uuid[]", "priority": "integer", "max_attempts": "integer",
    "soft_timeout": "interval", "deadline": "interval", "retry_on": "text[]", "never_on": "text[]",
    "unique_for": "interval",
    "batch": "uuid",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One claimed job, as far as tests look at it."""

    seq: int
    token: uuid.UUID
    id: uuid.UUID
    args: Any


class Session:
    """One session in autocommit mode; open as many as the test needs."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.drainer, self.worker = uuid.uuid4(), uuid.uuid4()
        self.shipment = uuid.uuid4()

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), params or None).fetchall()

    def one(self, query: str, *params: Any) -> Any:
        return self.connection.execute(query.encode(), params or None).fetchone()[0]  # type: ignore[index]

    def do(self, query: str, *params: Any) -> None:
        self.connection.execute(query.encode(), params or None)

    def enqueue(self, task: Any = "a.task", **options: Any) -> uuid.UUID:
        named = {"task": task, **options}
        call = ", ".join(f"{name} => %({name})s" + (f"::{CASTS[name]}" if name in CASTS else "") for name in named)
        given = {
            name: json.dumps(value) if CASTS.get(name) == "jsonb" and not isinstance(value, str) else value for name, value in named.items()
        }
        row = self.connection.execute(f"select bridge.enqueue({call})".encode(), given).fetchone()
        return row[0]  # type: ignore[index,no-any-return]

    def status(self, identity: Any) -> str:
        return str(self.one("select status from bridge.jobs where id = %s", identity))

    def field(self, identity: Any, name: str) -> Any:
        return self.one(f"select {name} from bridge.jobs where id = %s", identity)

    def claim(self, queue: str = "celery", limit: int = 500, size: int = 4 << 20) -> list[Claim]:
        self.shipment = uuid.uuid4()
        query = "select seq, token::uuid, id::uuid, args from bridge.claim(%s, %s, %s, %s, %s)"
        return [Claim(*row[:3], json.loads(row[3])) for row in self.rows(query, self.drainer, queue, self.shipment, limit, size)]

    def mark(self, claims: list[Claim]) -> int:
        return int(self.one("select bridge.mark_published(%s, %s)", self.shipment, [claim.seq for claim in claims]))

    def publish(self, **options: Any) -> Claim:
        """Claim what is ready, mark it, and give the first of it."""
        claims = self.claim(**options)
        self.mark(claims)
        return claims[0]

    def start(self, claim: Claim) -> uuid.UUID | None:
        return self.one("select bridge.start(%s, %s, %s, 1)", claim.seq, claim.token, self.worker)  # type: ignore[no-any-return]

    def run(self, **options: Any) -> tuple[Claim, uuid.UUID]:
        """Claim, mark and start one job that is ready."""
        claim = self.publish(**options)
        run = self.start(claim)
        assert run is not None
        return claim, run

    def finish(self, claim: Claim, run: Any, status: str = "succeeded", result: Any = None) -> bool:
        return bool(self.one("select bridge.finish(%s, %s, %s, %s::json)", claim.seq, run, status, json.dumps(result)))

    def fail(self, claim: Claim, run: Any, message: str = "broken", *, final: bool = False) -> str | None:
        error = json.dumps({"type": "ValueError", "message": message, "traceback": None})
        return self.one("select bridge.fail(%s, %s, %s::json, %s)", claim.seq, run, error, final)  # type: ignore[no-any-return]

    def report(self, *tokens: Any) -> dict[str, str]:
        """One heartbeat that holds these; the signals for those that are to be stopped."""
        query = "select bridge.report_worker(%s, 'w@test', 1, 'prefork', 2, '{celery}', 'test', %s::uuid[], clock_timestamp())"
        return dict(self.one(query, self.worker, list(tokens)))

    def listen(self) -> None:
        """Hear of ready jobs, as a drainer does that serves all queues."""
        self.do("listen bridge_ready")
        self.do("select bridge.report_drainer(%s, 'd@test', 1, 'test', 0, clock_timestamp())", self.drainer)

    def attempts(self, identity: Any) -> list[tuple[int, str]]:
        query = "select attempt, outcome from bridge.attempts where id = %s order by ended_at nulls last, attempt"
        return [(row[0], row[1]) for row in self.rows(query, identity)]

    def tick(self, **later: Any) -> dict[str, int]:
        """Tick, at a moment that is later than now by an interval: `tick(by='1 hour')`."""
        query = "select bridge.tick('test', p_now => clock_timestamp() + %s::interval)"
        return dict(self.one(query, later.get("by", "0")))


@pytest.fixture
def db(dsn: str) -> Iterator[Session]:
    """A session on a new database with our schema; the invariants hold at the end of every test."""
    session = Session(dsn)
    yield session
    assert_sound(dsn)
    session.connection.close()


@pytest.fixture
def other(db: Session) -> Iterator[Session]:
    """Somebody else's session on the same database: another worker, drainer or operator."""
    session = Session(db.dsn)
    yield session
    session.connection.close()
