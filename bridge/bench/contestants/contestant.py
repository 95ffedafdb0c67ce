"""What scenarios ask of everybody who runs jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bridge.bench.making import Producer
    from bridge.bench.rig import Rig
    from bridge.local.process import Process

__all__ = ["Contestant", "Running", "begun"]

Running = dict[str, "list[Process]"]
_COLD = 10  # of so many jobs one is run before the clock: by then processes are connected, and have what they need


def begun(jobs: int) -> int:
    """How many of so many jobs have ended when the clock begins to run."""
    return -(-jobs // _COLD)


class Contestant(ABC):
    """One way to run the same jobs on the same servers.

    Attributes:
        name: what reports call it.
        share: of the jobs that others run end to end, how many it does; a slow one would take the time of all.
        uses: kinds of servers whose CPU is spent for it: "postgres", "redis".
        stack: what `close` calls.
    """

    name: str
    share: float = 1.0
    uses: frozenset[str]

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stack = ExitStack()

    def clear(self) -> None:
        """Begin anew, where the rig does not."""
        del self

    def close(self) -> None:
        """Take away what it has made for itself."""
        self.stack.close()

    @abstractmethod
    def making(self, act: str, count: int, *, warm: int = 0, rate: float = 0.0, first: int = 0) -> Producer:
        """A process that makes jobs: by "delay" one by one, "many" at once, or "paced", numbered ones at a steady rate."""

    def fill(self, jobs: int) -> float:
        """Make jobs before the clock runs; CPU microseconds a job of the process that made them."""
        with self.making("delay", jobs) as producer:
            return producer.cpu_us(producer.go())

    @abstractmethod
    def workers(self, concurrency: int) -> AbstractContextManager[Running]:
        """All that runs the jobs, by kind; it may still be starting."""

    @abstractmethod
    def ended(self, jobs: int) -> int:
        """How many of so many jobs have ended, cheaply."""

    @abstractmethod
    def ends(self, jobs: int) -> tuple[float, float]:
        """When a tenth of the jobs (``begun``), and when all had ended, in seconds, after a look at every single one.

        Raises:
            BenchError: a job was lost, ended badly or twice, or its result cannot be had.
        """

    @abstractmethod
    def left_behind(self) -> int | None:
        """Row versions left behind in its database so far; None when it has none."""
