"""pgmq, which has no workers: the loop that its documentation shows, read, run, archive, a hundred messages at a time.

It is an extension, or a file of plain SQL: PGMQ_SQL names that file (`pgmq-extension/sql/pgmq.sql` of its repository) where the server
does not have the extension.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import psycopg
from peer import Peer, stamp

_BATCH, _FETCH = 1000, 100
_READ = "select msg_id, message from pgmq.read_with_poll('bench', 60, %s, 5, 100)"


class Pgmq(Peer):
    """Tables pgmq.q_bench and pgmq.a_bench."""

    name = "pgmq"
    packages = ("psycopg",)
    share = 4.0
    clear = "truncate pgmq.q_bench, pgmq.a_bench"
    ended = "select count(*) from pgmq.a_bench"
    ends = """
      select extract(epoch from percentile_disc(0.1) within group (order by archived_at)), extract(epoch from max(archived_at))
      from pgmq.a_bench"""

    @cached_property
    def connection(self) -> psycopg.Connection:
        """One for all calls."""
        return psycopg.connect(self.dsn, autocommit=True)

    def prepare(self) -> None:
        """Install it, and make a queue."""
        file = os.environ.get("PGMQ_SQL")
        self.connection.execute(Path(file).read_text() if file else "create extension pgmq")
        self.connection.execute("select pgmq.create('bench')")

    def delay(self, count: int) -> None:
        """Call send for each."""
        for _ in range(count):
            self.connection.execute("select pgmq.send('bench', %s::jsonb)", (json.dumps([self.payload]),))

    def many(self, count: int) -> None:
        """Call send_batch for a thousand."""
        for at in range(0, count, _BATCH):
            texts = [json.dumps([self.payload])] * min(_BATCH, count - at)
            self.connection.execute("select count(*) from pgmq.send_batch('bench', %s::jsonb[])", (texts,))

    def delay_stamp(self, number: int) -> None:
        """Call send."""
        self.connection.execute("select pgmq.send('bench', %s::jsonb)", (json.dumps([self.payload, number]),))

    def work(self) -> None:
        """Read, run, archive."""
        while True:
            rows = self.connection.execute(_READ, (_FETCH,)).fetchall()
            for _, message in rows:
                for number in message[1:]:
                    stamp(number)
            if rows:
                self.connection.execute("select count(*) from pgmq.archive('bench', %s::bigint[])", ([row[0] for row in rows],))


if __name__ == "__main__":
    Pgmq().main()
