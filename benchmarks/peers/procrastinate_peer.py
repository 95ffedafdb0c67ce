"""procrastinate: asyncio workers, each with ten jobs at once."""

from __future__ import annotations

import asyncio
import os
from functools import cached_property

import procrastinate
from peer import Peer, stamp

_BATCH, _AT_ONCE = 1000, 10


class Procrastinate(Peer):
    """Tables procrastinate_jobs and procrastinate_events."""

    name = "procrastinate"
    packages = ("procrastinate", "psycopg")
    share = 0.5
    clear = (
        "truncate procrastinate_jobs, procrastinate_events, procrastinate_periodic_defers, procrastinate_workers restart identity cascade"
    )
    ended = "select count(*) from procrastinate_jobs where status = 'succeeded'"
    ends = """
      select extract(epoch from percentile_disc(0.1) within group (order by at)), extract(epoch from max(at))
      from procrastinate_events where type = 'succeeded'"""

    @cached_property
    def app(self) -> procrastinate.App:
        """An application with the two tasks, opened for calls."""
        app = _app(procrastinate.SyncPsycopgConnector(conninfo=self.dsn))
        app.open()
        return app

    def prepare(self) -> None:
        """Apply its schema."""
        self.app.schema_manager.apply_schema()

    def delay(self, count: int) -> None:
        """Call defer for each."""
        for _ in range(count):
            self.app.tasks["noop"].defer(payload=self.payload)

    def many(self, count: int) -> None:
        """Call batch_defer for a thousand."""
        for at in range(0, count, _BATCH):
            self.app.tasks["noop"].batch_defer(*({"payload": self.payload} for _ in range(min(_BATCH, count - at))))

    def delay_stamp(self, number: int) -> None:
        """Call defer."""
        self.app.tasks["stamp"].defer(number=number, payload=self.payload)

    def work(self) -> None:
        """Run its own worker."""
        asyncio.run(_work(self.dsn))


def _app(connector: procrastinate.BaseConnector) -> procrastinate.App:
    app = procrastinate.App(connector=connector)

    @app.task(name="noop")
    async def noop(payload: str) -> None:
        del payload

    @app.task(name="stamp")
    async def stamped(number: int, payload: str) -> None:
        stamp(number)
        del payload

    return app


async def _work(dsn: str) -> None:
    app = _app(procrastinate.PsycopgConnector(conninfo=dsn, min_size=2, max_size=20))
    async with app.open_async():
        await app.run_worker_async(concurrency=_AT_ONCE, name=f"bench-{os.getpid()}")


if __name__ == "__main__":
    Procrastinate().main()
