"""Very many connections that enqueue at once, through a pooler."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import psycopg

from bridge.bench.jobs import QUEUE
from bridge.bench.making import Making, Producer, together
from bridge.bench.measure import BenchError, Sample, SkippedError
from bridge.bench.producer import CLIENTS
from bridge.bench.rounds import Scenario
from bridge.bench.scenarios.latency import percentiles
from bridge.local.pooler import HOW_TO_GET_IT, Pooler, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Clients"]

_PROCESSES = 4  # that the connections are spread over
_SESSIONS = 20  # of Postgres, behind the pooler
_EVERY = 0.05  # seconds between two looks at who waits
_ACTS = {"celery": "celery.crowd", "bridge": "bridge.crowd"}
_WAITING = """
  select coalesce(wait_event_type, 'none'), coalesce(wait_event, 'none'), count(*) from pg_stat_activity
  where datname = current_database() and state = 'active' and pid <> pg_backend_pid() group by 1, 2
"""


class Clients(Scenario):
    """Jobs made a second by a crowd."""

    name = "clients"
    about = "jobs made a second by --clients [200] connections at once; bridge: through pgbouncer in transaction mode"
    notes = (
        f"threads of {_PROCESSES} processes, a connection each, every job committed by itself; no worker",
        "beside bridge a drainer listens, and publishes what its window takes",
        f"pgbouncer has {_SESSIONS} sessions of Postgres",
        "p50_ms, p99_ms: of one call",
        f"lock_waiters, lwlock_waiters, active: sessions in that state at once, on average, of looks every {_EVERY * 1000:g} ms",
        "celery: delay() of as many threads, over the connections that its own pool has (10 a process); it keeps results in Redis",
    )
    jobs = 40_000  # several seconds, or it would be the first one that is measured

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self._dsn = rig.servers.dsn

    @classmethod
    def conditions(cls, options: Options) -> list[dict[str, float]]:
        """As many as were asked for."""
        return [{"clients": options.clients}]

    def prepare(self, done: Callable[[int], None]) -> None:
        """Start the pooler."""
        del done
        if find_pgbouncer() is None:
            raise SkippedError("no pgbouncer here", HOW_TO_GET_IT)
        folder = self.rig.servers.folder / "pgbouncer"
        pooler = Pooler(self._dsn, folder, sessions=_SESSIONS, clients=self.options.clients + _SESSIONS)
        pooler.start()
        self.stack.callback(pooler.stop)
        pooler.process.wait_ready(lambda: _answers(pooler.dsn))
        self._dsn = pooler.dsn

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Have all call at once; every job is there."""
        clients = self.options.clients
        processes = min(_PROCESSES, clients)
        threads = clients // processes
        each = max(jobs // (processes * threads), 1) * threads
        environment = {**self.rig.environment, CLIENTS: str(threads), "BRIDGE_DATABASE_URL": self._dsn}
        if side == "celery":
            environment = {**self.rig.plain_environment, CLIENTS: str(threads)}
        crowd = [Producer(Making(_ACTS[side], each, warm=threads), environment) for _ in range(processes)]
        with ExitStack() as sides:
            beside = {} if side == "celery" else {"drainer": sides.enter_context(self.rig.drainer())}
            go = sides.enter_context(together(crowd))
            meter = self.rig.meter(**beside)
            start = meter.read()
            with _Waits(self.rig.servers.dsn) as waits:
                said = go()
            cpu, wal = meter.since(start, each * processes)
        done(jobs)
        return self._sample(side, said, {**cpu, "client": 1e6 * sum(one["cpu"] for one in said) / (each * processes)}, wal, waits)

    def _sample(self, side: str, said: list[dict[str, Any]], cpu: dict[str, float], wal: float, waits: _Waits) -> Sample:
        took = [nanoseconds / 1e6 for one in said for nanoseconds in one["returned"]]
        wanted = len(took) + len(said) * (self.options.clients // len(said))
        there = int(self.rig.broker.llen(QUEUE) if side == "celery" else self.rig.value("select count(*) from bridge.job"))
        if there != wanted:
            raise BenchError(f"{side} made {there} jobs instead of {wanted}")
        figures = {"jobs_per_s": len(took) / max(one["seconds"] for one in said), **percentiles(took)}
        if side == "celery":
            del cpu["postgres"]
        else:
            figures |= {"wal_bytes_per_job": wal, **waits.figures()}
        return Sample(side, len(took), figures, cpu)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


class _Waits:
    """Looks, from a thread and a session of its own, at what sessions wait for while the block runs."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._seen: Counter[str] = Counter()
        self._looks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._ended.wait(_EVERY):
                self._looks += 1
                for kind, _, count in connection.execute(_WAITING):
                    self._seen.update({kind: count, "all": count})

    def figures(self) -> dict[str, float]:
        """Sessions at once, on average."""
        looks = max(self._looks, 1)
        names = {"lock_waiters": "Lock", "lwlock_waiters": "LWLock", "active": "all"}
        return {name: self._seen[kind] / looks for name, kind in names.items()}
