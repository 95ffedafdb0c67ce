"""We: rows in Postgres, a drainer, a stock worker."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from bridge.bench import results
from bridge.bench.contestants.contestant import Contestant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.bench.contestants.contestant import Running
    from bridge.bench.making import Producer

__all__ = ["Bridge", "Bundles", "Streaming"]

_ACTS = {"delay": "bridge.delay", "many": "bridge.many", "paced": "bridge.paced"}


class Bridge(Contestant):
    """One job a message, results in the jobs' rows.

    Attributes:
        app: the module here that its worker runs, and whose tasks are called.
        settings: variables of its worker, beside where the servers are.
    """

    name = "bridge"
    uses = frozenset({"redis", "postgres"})
    app = "joined"
    settings: ClassVar[dict[str, str]] = {}

    def making(self, act: str, count: int, *, warm: int = 0, rate: float = 0.0, first: int = 0) -> Producer:
        """Unmodified calls of its application, or our own functions."""
        return self.rig.producer(_ACTS[act], count, warm=warm, rate=rate, first=first)

    def fill(self, jobs: int) -> float:
        """Unmodified calls in one transaction: what servers spend on single ones is another scenario's."""
        with self.rig.producer("bridge.within", jobs) as producer:
            return producer.cpu_us(producer.go())

    @contextmanager
    def workers(self, concurrency: int) -> Iterator[Running]:
        """A drainer with default settings, and one prefork worker."""
        environment = {**self.rig.environment, **self.settings}
        with self.rig.drainer() as drainer, self.rig.worker(self.app, concurrency, environment) as worker:
            yield {"drainer": [drainer], "worker": [worker]}

    def ended(self, jobs: int) -> int:
        """The rows that live no more."""
        return results.row_count(self.rig, jobs)()

    def ends(self, jobs: int) -> tuple[float, float]:
        """As the rows say."""
        results.check_rows(self.rig, jobs)
        ids = self.rig.control.execute("select id from bridge.finished where task like 'bench.%' limit 1000")
        results.check_get(self.app, self.rig.environment, [str(row[0]) for row in ids])
        return results.row_ends(self.rig)

    def left_behind(self) -> int | None:
        """In the bridge's database."""
        return self.rig.left_behind()


class Streaming(Bridge):
    """The worker keeps results for a tenth of a second, and writes them together."""

    name = "bridge, streaming"
    settings: ClassVar[dict[str, str]] = {"BRIDGE_STREAMING": "0.1"}


class Bundles(Bridge):
    """Up to 200 jobs a message: the task has the option bridge_bundle."""

    name = "bridge, bundles"
    share = 2.0  # more are needed to be measured
    app = "bundled"

    @contextmanager
    def workers(self, concurrency: int) -> Iterator[Running]:
        """The worker comes first, and says what it can take."""
        with self.rig.worker(self.app, concurrency) as worker:
            self.rig.wait_for(self._declared, 1, worker)
            with self.rig.drainer() as drainer:
                yield {"drainer": [drainer], "worker": [worker]}

    def _declared(self) -> int:
        row = self.rig.control.execute("select count(*) from bridge.worker where bundles is not null and stopped_at is null").fetchone()
        return int(row[0]) if row else 0
