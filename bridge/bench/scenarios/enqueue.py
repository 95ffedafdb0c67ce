"""Making jobs, in the ways that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.bench.contest import Contest
from bridge.bench.contestants import Peer
from bridge.bench.jobs import QUEUE
from bridge.bench.measure import BenchError, Sample, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.making import Producer
    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Enqueue"]

_OURS = {
    "bridge, delay()": "bridge.delay", "bridge, delay() in a transaction": "bridge.within",
    "bridge, delay() in a session": "bridge.session", "bridge, single": "bridge.single",
    "bridge, one transaction": "bridge.transaction", "bridge, bulk": "bridge.many",
}  # fmt: skip
_PEERS = {"single": "delay", "bulk": "many"}


class Enqueue(Contest):
    """Jobs made a second."""

    name = "enqueue"
    about = "jobs made a second by one process, with 1 KB of arguments, without drainer and worker"
    notes = (
        "delay(): unmodified calls of the joined application, each committed by itself, or all in one open transaction with its commit,",
        "of a psycopg connection, or of a SQLAlchemy session, which tells of its commit, so that many are sent together",
        "single: bridge.enqueue, each committed; one transaction: bridge.enqueue in an open transaction, its commit included",
        "bulk: one call of bridge.enqueue_many with a generator of all jobs, in one transaction of its own",
        "celery: a delay() loop; a peer: its call for one job, each committed, and its call for many",
    )
    targets = (
        Target("bridge, delay() in a transaction", "jobs_per_s", 1.3), Target("bridge, delay() in a session", "jobs_per_s", 1.3),
        Target("bridge, single", "jobs_per_s", 1.0), Target("bridge, bulk", "jobs_per_s", 80.0),
    )  # fmt: skip

    def __init__(self, rig: Rig, options: Options, condition: dict[str, float]) -> None:
        super().__init__(rig, options, condition)
        self._theirs = {
            f"{one.name}, {way}": (one, act) for one in self.contestants.values() if isinstance(one, Peer) for way, act in _PEERS.items()
        }
        plain = [name for name in self.contestants if name.startswith("celery")]
        self.sides = (*plain, *_OURS, *self._theirs)

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Make jobs; every one of them is there."""
        warm = max(jobs // 20, 1)
        with self._producer(side, jobs, warm) as producer:
            meter = self.rig.meter()
            start = meter.read()
            said = producer.go()
            cpu, wal = meter.since(start, jobs)
        done(jobs)
        plain = side.startswith("celery")
        if side not in self._theirs:
            there = int(self.rig.broker.llen(QUEUE) if plain else self.rig.value("select count(*) from bridge.ready"))
            if there != warm + jobs:
                raise BenchError(f"{side} made {there} jobs instead of {warm + jobs}")
        del cpu["postgres" if plain else "redis"]
        figures = {"jobs_per_s": jobs / said["seconds"], **({} if plain else {"wal_bytes_per_job": wal})}
        return Sample(side, jobs, figures, {"client": producer.cpu_us(said), **cpu})

    def _producer(self, side: str, jobs: int, warm: int) -> Producer:
        if side in _OURS:
            return self.rig.producer(_OURS[side], jobs, warm=warm)
        contestant, act = self._theirs.get(side) or (self.contestants[side], "delay")
        return contestant.making(act, jobs, warm=warm)
