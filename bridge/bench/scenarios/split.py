"""Where the CPU of the single-job path goes: to the enqueue, the claim, the start or the finish."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge.bench import results
from bridge.bench.jobs import QUEUE, RESULT
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario
from bridge.bench.scenarios.drain import drained
from bridge.queries.connection import connect
from bridge.queries.runs import Finish, report_worker
from bridge.settings import Settings
from bridge.worker.board import Board
from bridge.worker.channel import RunChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Split"]

_MESSAGE = re.compile(
    rb'"id": "([0-9a-f-]{36})".*"bridge": "(\d+):([0-9a-f-]{36})"|"bridge": "(\d+):([0-9a-f-]{36})".*"id": "([0-9a-f-]{36})"'
)
_SLICE = 500  # runs that are started before the first of them is finished
_TOTAL = 300.0


class Split(Scenario):
    """CPU microseconds of Postgres and the drainer."""

    name = "split"
    about = "CPU microseconds that Postgres and the drainer spend on a job of the single path, by enqueue, claim, start and finish"
    notes = (
        "the way: one step after the other; what all processes of Postgres spend meanwhile (/proc, background writers too) is that step's",
        "the steps: delay() calls, each committed; a drainer publishes them; starts and finishes by the worker's own channel",
        f"{_SLICE} are started, then finished, and so on, in one process; claim_us holds the drainer's share, which is told apart too",
        "the setting window is 0 (no bound); what a worker's reports and ticks add is not in it",
    )
    sides = ("bridge",)
    baseline = None
    targets = (Target("bridge", "all_us", _TOTAL, at_least=False, ratio=False),)
    jobs = 10_000

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Take the same jobs through all steps; each has ended once."""
        warm = max(jobs // 20, 1)
        total, spent = jobs + warm, dict.fromkeys(("enqueue", "claim", "start", "finish"), 0.0)

        def fill() -> None:
            with self.rig.producer("bridge.delay", jobs, warm=warm) as producer:
                spent["enqueue"] = self._postgres(producer.go, jobs)

        sample = drained(self.rig, side, total, done, fill)
        drainer = sample.cpu_us.get("drainer", 0.0)
        spent["claim"] = sample.cpu_us.get("postgres", 0.0) + drainer
        self._run(total, spent, done)
        results.check_rows(self.rig, total)
        figures = {**{f"{step}_us": used for step, used in spent.items()}, "drainer_us": drainer, "all_us": sum(spent.values())}
        return Sample(side, total, figures)

    def _postgres(self, work: Callable[[], object], jobs: int) -> float:
        """CPU microseconds a job of Postgres, while something is done."""
        meter = self.rig.meter()
        start = meter.read()
        work()
        return meter.since(start, jobs)[0].get("postgres", 0.0)

    def _run(self, total: int, spent: dict[str, float], done: Callable[[int], None]) -> None:
        dsn, worker = self.rig.servers.dsn, uuid.uuid4()
        texts: list[bytes] = self.rig.broker.lrange(QUEUE, 0, -1)  # type: ignore[assignment]
        found = [_delivery(text) for text in texts]
        channel = RunChannel(Settings(database_url=dsn), Board())
        with closing(connect(dsn, name="bridge bench")) as reports:
            for at in range(0, total, _SLICE):
                those = found[at : at + _SLICE]
                report_worker(
                    reports, worker, name="bench", pid=os.getpid(), pool="prefork", concurrency=1, queues=[QUEUE], software="bench",
                    holding=[token for _, token, _ in those], clock=datetime.now(UTC),
                )  # fmt: skip
                self._slice(channel, worker, those, spent, total)
                done(at + len(those))

    def _slice(
        self, channel: RunChannel, worker: uuid.UUID, those: Sequence[tuple[int, str, uuid.UUID]], spent: dict[str, float], total: int
    ) -> None:  # fmt: skip
        """Start a slice of the jobs, then finish it; what that takes is added as microseconds of each job of all."""
        started: list[uuid.UUID | None] = []

        def start() -> None:
            started.extend(channel.start(seq, token, worker, os.getpid(), uuid.uuid4()) for seq, token, _ in those)

        def finish() -> None:
            for (seq, token, job), run in zip(those, started, strict=True):
                if run is None:
                    raise BenchError(f"job {job} could not be started")
                channel.finish(Finish(seq, run, token, job, "succeeded", f'"{RESULT}"'))
            channel.settle()

        spent["start"] += self._postgres(start, total)
        spent["finish"] += self._postgres(finish, total)


def _delivery(text: bytes) -> tuple[int, str, uuid.UUID]:
    """Number, token and job of a message."""
    found = _MESSAGE.search(text)
    if found is None:
        raise BenchError(f"a message without a delivery: {text[:200]!r}")
    seq, token, job = (found[2], found[3], found[1]) if found[2] else (found[4], found[5], found[6])
    return int(seq), token.decode(), uuid.UUID(job.decode())
