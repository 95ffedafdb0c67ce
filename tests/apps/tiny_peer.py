"""The smallest queue that `bridge bench --peer` can drive: one table, taken row by row."""

from __future__ import annotations

import sys
import time
from functools import cached_property
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/peers"))

from peer import Peer, stamp

NEXT = """
  update tiny set ended_at = clock_timestamp()
  where id = (select id from tiny where ended_at is null order by id limit 1 for update skip locked) returning number
"""


class Tiny(Peer):
    """Table tiny."""

    name = "tiny"
    packages = ("psycopg",)
    clear = "truncate tiny"
    ended = "select count(*) from tiny where ended_at is not null"
    ends = "select extract(epoch from min(ended_at)), extract(epoch from max(ended_at)) from tiny"

    @cached_property
    def connection(self) -> psycopg.Connection:
        return psycopg.connect(self.dsn, autocommit=True)

    def prepare(self) -> None:
        columns = "id bigint generated always as identity, number bigint, payload text, ended_at timestamptz"
        self.connection.execute(f"create table tiny ({columns})".encode())

    def delay(self, count: int) -> None:
        for _ in range(count):
            self.connection.execute("insert into tiny (payload) values (%s)", (self.payload,))

    def many(self, count: int) -> None:
        self.connection.execute("insert into tiny (payload) select %s from generate_series(1, %s)", (self.payload, count))

    def delay_stamp(self, number: int) -> None:
        self.connection.execute("insert into tiny (number, payload) values (%s, %s)", (number, self.payload))

    def work(self) -> None:
        while True:
            row = self.connection.execute(NEXT).fetchone()
            if row is None:
                time.sleep(0.01)
            elif row[0] is not None:
                stamp(row[0])


if __name__ == "__main__":
    Tiny().main()
