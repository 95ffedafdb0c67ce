"""PgQueuer on asyncpg, in its durable mode, a hundred jobs a fetch."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import asyncpg
from peer import Peer, stamp
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver

if TYPE_CHECKING:
    from collections.abc import Coroutine

_BATCH, _FETCH = 1000, 100


class Pgqueuer(Peer):
    """Tables pgqueuer and pgqueuer_log."""

    name = "PgQueuer"
    packages = ("pgqueuer", "asyncpg")
    share = 4.0
    clear = "truncate pgqueuer, pgqueuer_log, pgqueuer_statistics restart identity"
    ended = "select count(*) from pgqueuer_log where status = 'successful'"
    ends = """
      select extract(epoch from percentile_disc(0.1) within group (order by created)), extract(epoch from max(created))
      from pgqueuer_log where status = 'successful'"""

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """For calls from code that is not asynchronous."""
        return asyncio.new_event_loop()

    @cached_property
    def queries(self) -> Queries:
        """Its calls, over one connection."""
        return Queries(AsyncpgDriver(self._run(asyncpg.connect(self.dsn))))

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)

    def prepare(self) -> None:
        """Install its schema."""
        self._run(self.queries.install())

    def delay(self, count: int) -> None:
        """Call enqueue for each."""
        for _ in range(count):
            self._run(self.queries.enqueue("noop", self.payload.encode()))

    def many(self, count: int) -> None:
        """Call enqueue for a thousand."""
        for at in range(0, count, _BATCH):
            some = min(_BATCH, count - at)
            self._run(self.queries.enqueue(["noop"] * some, [self.payload.encode()] * some, [0] * some))

    def delay_stamp(self, number: int) -> None:
        """Call enqueue."""
        self._run(self.queries.enqueue("stamp", f"{number} {self.payload}".encode()))

    def work(self) -> None:
        """Run its own loop."""
        logging.getLogger("pgqueuer").setLevel(logging.WARNING)
        asyncio.run(_work(self.dsn))


async def _work(dsn: str) -> None:
    async with asyncpg.create_pool(dsn, min_size=2, max_size=10) as pool:
        queue = PgQueuer(AsyncpgPoolDriver(pool))

        @queue.entrypoint("noop")
        async def noop(job: Any) -> None:
            del job

        @queue.entrypoint("stamp")
        async def stamped(job: Any) -> None:
            stamp(int(job.payload.split()[0]))

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
        await queue.run(batch_size=_FETCH)


if __name__ == "__main__":
    Pgqueuer().main()
