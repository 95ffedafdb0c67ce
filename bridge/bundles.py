"""Which of the jobs that a drainer has claimed travel in one message: many small ones of a task cost Celery what one costs."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge import message
from bridge.broker.sifting import OF_A_ROW, sifted
from bridge.errors import PublishError
from bridge.queries import dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.broker import Broker
    from bridge.broker.sifting import Unsendable
    from bridge.queries.connection import Connection
    from bridge.queries.dispatch import Claimed

__all__ = ["Bundles", "Sizes"]

_KNOWN = 2.0  # seconds until it is asked again what the workers of a queue can take
_BYTES = 256 * 1024  # of a bundle's content, at most: a worker's main process copies it for its child
# A job with a hard time limit travels alone, because what enforces it ends the process that runs the bundle.
_UNLIMITED = re.compile(r'"timelimit": ?\[null, ?(null|[0-9.]+)\]')


@dataclass(frozen=True)
class Sizes:
    """How many jobs one message of a queue may have.

    Attributes:
        by_task: of the tasks of which a worker says something.
        other: of all others.
        children: how many jobs the workers run at once.
    """

    by_task: dict[str, int] = field(default_factory=dict)
    other: int = 1
    children: int = 1

    def of(self, task: str) -> int:
        """How many of a task; 1 or less: each alone."""
        return self.by_task.get(task, self.other)


class Bundles:
    """Packs what is to be published."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Sizes | None]] = {}

    def sizes(self, connection: Connection, queue: str) -> Sizes | None:
        """What the workers of a queue can take; None where each job travels alone. Known for two seconds."""
        until, sizes = self._known.get(queue, (0.0, None))
        if time.monotonic() >= until:
            sizes = _asked(connection, queue)
            self._known[queue] = time.monotonic() + _KNOWN, sizes
        return sizes

    def publish(self, broker: Broker, jobs: Sequence[Claimed], sizes: Sizes | None) -> list[Unsendable]:
        """Hand jobs to a broker, in as few messages as may be; those of which no message can be sent.

        Raises:
            PublishError: as the broker raises it; what it has confirmed are the jobs of those messages.
        """
        if sizes is None:
            return broker.publish(jobs)
        packed = {part[0].seq: part for part in self.pack(jobs, sizes)}  # a message has the number of its first job
        made, unmade = sifted([part[0] for part in packed.values()], lambda first: _message_of(packed[first.seq]))
        try:
            unsendable = broker.publish([one for _, one in made])
        except PublishError as error:
            error.confirmed = frozenset(job.seq for seq in error.confirmed for job in packed[seq])
            raise
        broken = [job for one in [*unmade, *unsendable] if len(packed[one.job.seq]) > 1 for job in packed[one.job.seq]]
        alone = [one for one in [*unmade, *unsendable] if len(packed[one.job.seq]) == 1]
        return [*alone, *(broker.publish(broken) if broken else [])]

    @staticmethod
    def pack(jobs: Sequence[Claimed], sizes: Sizes) -> list[Sequence[Claimed]]:
        """Jobs that travel together, the messages in the order of their first.

        There are as many messages as the workers have processes, or more, so that all of them have something to do.
        """
        if len(jobs) <= 1:
            return [(job,) for job in jobs]
        groups: dict[tuple[str, ...], list[Claimed]] = defaultdict(list)
        for job in jobs:
            groups[_group(job, sizes)].append(job)
        return [part for group in groups.values() for part in _parts(group, sizes)]


def _message_of(part: Sequence[Claimed]) -> Claimed:
    return part[0] if len(part) == 1 else message.bundle(part)


def _asked(connection: Connection, queue: str) -> Sizes | None:
    rows = dispatch.bundles(connection, queue)
    by_task = {task: jobs for task, jobs, _ in rows if task is not None}
    other = next((jobs for task, jobs, _ in rows if task is None), 1)
    return Sizes(by_task, other, rows[0][2]) if max([other, *by_task.values()]) > 1 else None


def _group(job: Claimed, sizes: Sizes) -> tuple[str, ...]:
    """What jobs of one bundle have in common; something of its own where a job travels alone."""
    if sizes.of(job.task) > 1 and job.payload is None and job.expires_at is None and not job.alone:
        with suppress(*OF_A_ROW):
            given = json.loads(job.properties) if job.properties else {}
            if not given.get("declare") and (job.headers is None or _UNLIMITED.search(job.headers)):
                route = {"routing_key": job.queue, **given}
                return (job.task, str(job.rank), *(str(route.get(name)) for name in message.ROUTE))
    return (str(job.seq),)


def _parts(group: list[Claimed], sizes: Sizes) -> Iterator[Sequence[Claimed]]:
    most = min(sizes.of(group[0].task), -(-len(group) // sizes.children)) if len(group) > 1 else 1
    part: list[Claimed] = []
    content = 0
    for job in group:
        size = len(job.args) + len(job.kwargs) + len(job.embed or "")
        if part and (len(part) >= most or content + size > _BYTES):
            yield part
            part, content = [], 0
        part.append(job)
        content += size
    yield part
