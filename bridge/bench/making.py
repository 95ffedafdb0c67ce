"""The processes that make jobs, seen from the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from bridge.bench.measure import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Making", "Producer", "together"]


@dataclass(frozen=True, slots=True)
class Making:
    """What a process that makes jobs is asked for.

    Attributes:
        act: the way: one of `bridge.bench.producer`, or what a peer's program calls it.
        count: jobs that are measured.
        warm: jobs made before, to open connections and fill caches.
        rate: jobs a second; 0 is as fast as it can.
        first: number of the first measured job, where jobs are numbered.
    """

    act: str
    count: int
    warm: int = 0
    rate: float = 0.0
    first: int = 0

    @property
    def words(self) -> list[str]:
        """The same as arguments of a command."""
        return [self.act, str(self.count), str(self.warm), str(self.rate), str(self.first)]


class Producer:
    """One process that makes jobs: it warms up, waits for the word, and says what it did.

    A context manager. The process lives until the block ends, so that its connections are still counted.

    Args:
        making: what is asked of it.
        environment: all that it finds there.
        program: the command before the arguments; None is `bridge.bench.producer`.
    """

    def __init__(self, making: Making, environment: Mapping[str, str], program: Sequence[str] | None = None) -> None:
        command = [*(program or [sys.executable, "-m", "bridge.bench.producer"]), *making.words]
        self._making = making
        self._child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *_error: object) -> None:
        self._child.kill()
        self._child.communicate()

    def go(self) -> dict[str, Any]:
        """Let it work; what it says at the end."""
        self.tell()
        return self.said()

    def tell(self) -> None:
        """Let it work, and return at once."""
        if self._child.stdin is not None:
            self._child.stdin.write("go\n")
            self._child.stdin.flush()

    def said(self) -> dict[str, Any]:
        """What it says at the end, which is waited for: its seconds, its CPU seconds, and more by the act."""
        return self._read()

    def cpu_us(self, said: dict[str, Any]) -> float:
        """CPU microseconds a job."""
        return 1e6 * float(said["cpu"]) / self._making.count

    def _read(self) -> dict[str, Any]:
        line = self._child.stdout.readline() if self._child.stdout is not None else ""
        if not line:
            raise BenchError(f"the producer {self._making.act} died with status {self._child.wait()}", "its error stands above")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def together(producers: Sequence[Producer]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Processes that make jobs at the same time; once all are ready, what it gives lets them work and has what each said."""
    with ExitStack() as stack:
        ready = [stack.enter_context(producer) for producer in producers]

        def go() -> list[dict[str, Any]]:
            for producer in ready:
                producer.tell()
            return [producer.said() for producer in ready]

        yield go
