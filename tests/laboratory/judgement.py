"""What a long run must show beside an empty list of sins: memory stays flat, no handle and no connection is left open.

A life is one process from its start to its end. Of every life that is long enough, the median of its first quarter is compared with that
of its last; the first minute is left out, in which a process loads what it needs. A kind of process is judged by its longest lives: each
that is old by itself, the others by what most of them did.

A pool child is allowed what Celery itself takes for each task that raises, on Python 3.11 about 180 KiB: 600 failing tasks of an
application without the bridge grew a child from 13 to 119 MiB. `worker_max_memory_per_child` is Celery's answer to that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from laboratory.checker import Sin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from laboratory.samples import Process, Sample

MIB = 1 << 20
WARM_UP = 60.0  # seconds at the beginning of a life
SHORTEST = 180.0  # seconds that a life must last beyond that
FEWEST = 12  # samples in it
LONGEST = 5  # lives of a kind that are judged
OLD = 1800.0  # seconds from which a life is judged by itself: what four young ones have not had the time for may be seen in it
# From the first quarter to the last: a share, and beside it what is too little to speak of.
GROWTH, NOISE = 0.10, 6 * MIB
RAISED = 200 << 10  # bytes of a pool child for each run that raised
HANDLES = 4
CONNECTIONS_GROWTH, CONNECTIONS = 0.15, 4
FOREIGN = ("redis", "rabbitmq", "of the broker")  # not ours to judge; they are shown


@dataclass(frozen=True)
class Life:
    """What one process had, from quarter to quarter."""

    kind: str
    pid: int
    seconds: float
    first_bytes: float
    last_bytes: float
    first_handles: float
    last_handles: float

    def is_flat(self, raised: Mapping[int, int]) -> bool:
        """Whether its memory stays within what is allowed."""
        allowed = max(GROWTH * self.first_bytes, NOISE) + RAISED * raised.get(self.pid, 0)
        return self.last_bytes - self.first_bytes <= allowed

    @property
    def keeps_handles(self) -> bool:
        return self.last_handles - self.first_handles > HANDLES


def lives(samples: Sequence[Sample]) -> list[Life]:
    """Those that are long enough, the longest of each kind first."""
    seen: dict[tuple[str, int, float], list[tuple[float, Process]]] = defaultdict(list)
    for sample in samples:
        for one in sample.processes:
            seen[one.kind, one.pid, one.born].append((sample.at, one))
    found = []
    for (kind, pid, _), points in seen.items():
        warm = [(at, one) for at, one in points if at >= points[0][0] + WARM_UP]
        if len(warm) >= FEWEST and warm[-1][0] - warm[0][0] >= SHORTEST:
            found.append(_life(kind, pid, warm))
    return sorted(found, key=lambda life: (life.kind, -life.seconds))


def _life(kind: str, pid: int, points: list[tuple[float, Process]]) -> Life:
    quarter = max(len(points) // 4, 1)
    first, last = [one for _, one in points[:quarter]], [one for _, one in points[-quarter:]]
    return Life(
        kind, pid, points[-1][0] - points[0][0],
        median(one.anonymous for one in first), median(one.anonymous for one in last),
        median(one.handles for one in first), median(one.handles for one in last),
    )  # fmt: skip


def judge(samples: Sequence[Sample], raised: Mapping[int, int]) -> list[Sin]:
    """The sins of a long run.

    Args:
        samples: all of them.
        raised: how many runs raised, by the pid of their pool child.
    """
    return [Sin(rule, None, words) for rule, words in (*_by_lives(samples, raised), *_by_connections(samples))]


def judged(samples: Sequence[Sample]) -> dict[str, list[Life]]:
    """The lives that count, by kind."""
    found: dict[str, list[Life]] = defaultdict(list)
    for life in lives(samples):
        if len(found[life.kind]) < LONGEST:
            found[life.kind].append(life)
    return dict(found)


def _by_lives(samples: Sequence[Sample], raised: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    for kind, those in judged(samples).items():
        if kind in FOREIGN:
            continue
        if grown := _grown_ones(those, lambda life: not life.is_flat(raised)):
            yield "memory_grew", f"{kind}: {', '.join(f'{_told(one)}, {raised.get(one.pid, 0)} raised' for one in grown)}"
        if grown := _grown_ones(those, lambda life: life.keeps_handles):
            told = ", ".join(f"pid {one.pid} {one.first_handles:g} to {one.last_handles:g} in {one.seconds / 60:.0f} min" for one in grown)
            yield "handles_left_open", f"{kind}: {told}"


def _grown_ones(those: Sequence[Life], has_grown: Callable[[Life], bool]) -> list[Life]:
    """Of a kind's lives those that have grown, where that counts.

    A young life may have met the largest job of all at its end, most of them cannot; the quarters of an old one have each met all.
    """
    grown = [life for life in those if has_grown(life)]
    return grown if 2 * len(grown) > len(those) else [life for life in grown if life.seconds >= OLD]


def _told(life: Life) -> str:
    return f"pid {life.pid} {life.first_bytes / MIB:.1f} to {life.last_bytes / MIB:.1f} MiB"


def _by_connections(samples: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    names = {name for sample in samples for name in sample.connections}
    for name in sorted(names):
        yield from _grown(f"{name} to postgres", samples, lambda sample, name=name: sample.connections.get(name, 0))
    yield from _grown("to the broker", samples, lambda sample: sample.clients)


def _grown(what: str, samples: Sequence[Sample], of: Callable[[Sample], int | None]) -> Iterator[tuple[str, str]]:
    warm = [value for sample in samples if sample.at >= WARM_UP and sample.connections and (value := of(sample)) is not None]
    if len(warm) < FEWEST:
        return
    quarter = len(warm) // 4
    first, last = median(warm[:quarter]), median(warm[-quarter:])
    if last > first + max(CONNECTIONS_GROWTH * first, CONNECTIONS):
        yield "connections_left_open", f"connections {what}: {first:g} in the first quarter, {last:g} in the last"
