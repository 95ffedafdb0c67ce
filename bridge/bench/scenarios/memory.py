"""How much memory a drainer takes, whatever waits and however large it is."""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.bench.cost import peak_memory
from bridge.bench.jobs import NOOP, QUEUE
from bridge.bench.measure import BenchError, Sample, Target
from bridge.bench.rounds import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.bench.rig import Rig

__all__ = ["Memory"]

_BIG = (1 << 20) - len('[""]{}')  # characters, so that args and kwargs together are 1 MiB, the largest that is taken
_SMALL = 1020
_BIG_SHARE = 200  # one job of so many is big
_FRONT = 10  # the big ones are evenly among the first tenth
_PAGE = 10_000
_POP, _POPS = 50, 20
_DELIVERY = re.compile(rb'"bridge": "(\d+):([0-9a-f-]{36})"')
_FILL = """
  select count(bridge.enqueue(%s, jsonb_build_array(repeat('x', case when n <= %s and n %% %s = 0 then %s else %s end)), queue => %s))
  from generate_series(%s::integer, %s::integer) n
"""
# Start and finish in one transaction: no tick sees a run of a worker that does not report.
_END = """
  select count(*) filter (where bridge.finish(t.seq, bridge.start(t.seq, t.token, %s, %s), 'succeeded'))
  from unnest(%s::bigint[], %s::uuid[]) t (seq, token)
"""
_COUNTS = """
  select (select count(*) from bridge.job), (select count(*) from bridge.finished),
    (select count(*) from bridge.finished where size > 1000000)
"""


class Memory(Scenario):
    """The drainer's peak."""

    name = "memory"
    about = "peak memory of a drainer before a million ready jobs, 5,000 of 1 MiB, while the tenth with all the large ones goes through"
    notes = (
        "default settings, the window among them; in place of a worker one loop takes messages and ends their rows",
        "the large arguments are one letter repeated: Postgres keeps them small, the drainer sees them whole",
    )
    sides = ("bridge",)
    baseline = None
    targets = (Target("bridge", "peak_mib", 150.0, at_least=False, ratio=False),)
    jobs = 1_000_000
    lasts = True
    rounds = 1

    def measure(self, side: str, jobs: int, done: Callable[[int], None]) -> Sample:
        """Let the first tenth through; every job is ready or has ended, once."""
        rig, front = self.rig, max(jobs // _FRONT, 1)
        every = max(front * _BIG_SHARE // jobs, 1)
        for at in range(1, jobs + 1, _PAGE):
            rig.value(_FILL, NOOP, front, every, _BIG, _SMALL, QUEUE, at, min(at + _PAGE - 1, jobs))
            done(at)
        consumer = _Consumer(rig)
        with rig.drainer() as drainer:
            idle = peak_memory(drainer.pid)
            rig.wait_for(consumer.take, front, drainer, tell=done, longest=0.0)
            peak = peak_memory(drainer.pid)
        live, ended, big = rig.control.execute(_COUNTS).fetchone() or (0, 0, 0)
        if live + ended != jobs or ended != consumer.ended or big != front // every:
            raise BenchError(f"of {jobs} jobs {live} are live and {ended} have ended, {consumer.ended} of them here and {big} large")
        return Sample(side, ended, {"peak_mib": peak, "connected_mib": idle, "large_jobs": float(big)})


@dataclass
class _Consumer:
    """Stands for a worker: takes messages, and ends their jobs."""

    rig: Rig
    ended: int = 0

    def take(self) -> int:
        """End what waits in the queue, a window's worth at most; how many jobs have ended so far.

        Raises:
            BenchError: a message came twice.
        """
        for _ in range(_POPS):
            texts: list[bytes] = self.rig.broker.rpop(QUEUE, _POP) or []  # type: ignore[assignment]
            if not texts:
                break
            found = [match for text in texts if (match := _DELIVERY.search(text))]
            seqs, tokens = [int(match[1]) for match in found], [match[2].decode() for match in found]
            ended = int(self.rig.value(_END, uuid.uuid4(), os.getpid(), seqs, tokens))
            if ended != len(texts):
                raise BenchError(f"{len(texts) - ended} of {len(texts)} messages are not of jobs that wait for one")
            self.ended += ended
        return self.ended
