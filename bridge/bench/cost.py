"""What work costs beside time: CPU by kind of process, bytes of WAL, dead rows, peak memory.

CPU per job hardly moves when other programs share the cores; rates do. Both are printed.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg
    import redis

__all__ = ["CHILDREN", "MAIN", "Meter", "Reading", "dead_rows", "peak_memory", "tree_cpu"]

_PROC = Path("/proc")
_MICROSECONDS = 1e6
_WORKER, MAIN, CHILDREN = "worker", "worker main", "worker children"
# What a table's statistics count as gone is exact at the end of each session; what vacuum has taken away is still among it.
_SESSIONS = """
  select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    and state is distinct from 'idle in transaction'
"""
_GOODBYE = 5.0  # seconds that sessions of ended processes have to end
_DEAD = "select coalesce(sum(n_tup_upd + n_tup_del), 0) from pg_stat_user_tables"


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment: CPU seconds by kind of process, and the position in the WAL."""

    cpu: dict[str, float]
    wal: int


class Meter:
    """Reads counters of the servers and of the processes that a side runs.

    Args:
        control: a connection to Postgres; its server's CPU is seen when it runs on this machine.
        broker: a client of Redis.
        processes: process ids by kind; their children count with them, those of the kind "worker" as a kind of their own.
    """

    def __init__(self, control: psycopg.Connection, broker: redis.Redis, processes: Mapping[str, Sequence[int]] | None = None) -> None:
        self._control = control
        self._broker = broker
        self._processes = dict(processes or {})
        postmaster = _postmaster(control.info.backend_pid)
        if postmaster is not None:
            self._processes["postgres"] = [postmaster]

    def read(self) -> Reading:
        """The counters now."""
        seconds = tree_cpu({pid for pids in self._processes.values() for pid in pids})
        cpu: dict[str, float] = {}
        for kind, pids in self._processes.items():
            seen = [seconds[pid] for pid in pids if pid in seconds]
            if not seen:
                continue
            own, children = sum(one for one, _ in seen), sum(other for _, other in seen)
            cpu |= {MAIN: own, CHILDREN: children} if kind == _WORKER else {kind: own + children}
        used = self._broker.info("cpu")
        cpu["redis"] = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
        row = self._control.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
        return Reading(cpu, int(row[0]) if row else 0)

    def since(self, start: Reading, jobs: int) -> tuple[dict[str, float], float]:
        """CPU microseconds by kind and WAL bytes, a job, since an earlier reading."""
        now = self.read()
        cpu = {kind: _MICROSECONDS * (now.cpu[kind] - start.cpu[kind]) / jobs for kind in now.cpu if kind in start.cpu}
        return cpu, (now.wal - start.wal) / jobs


def tree_cpu(roots: Iterable[int]) -> dict[int, tuple[float, float]]:
    """CPU seconds of these processes, and of all their children, the ended ones among them; only those that can be seen."""
    wanted = set(roots)
    parents: dict[int, int] = {}
    own: dict[int, float] = {}
    reaped: dict[int, float] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        fields = _stat(entry)
        if fields is not None:
            pid, tick = int(entry.parent.name), os.sysconf("SC_CLK_TCK")
            parents[pid] = int(fields[1])
            own[pid], reaped[pid] = sum(map(int, fields[11:13])) / tick, sum(map(int, fields[13:15])) / tick
    children: dict[int, float] = defaultdict(float)
    for pid, seconds in own.items():
        at: int | None = pid
        while at is not None and at not in wanted:
            at = parents.get(at)
        if at is not None:
            children[at] += reaped[pid] + (seconds if at != pid else 0.0)
    return {pid: (own[pid], children[pid]) for pid in wanted if pid in own}


def dead_rows(control: psycopg.Connection) -> int:
    """How many row versions have been left behind in this database, those among them that vacuum has taken away since.

    Sessions tell when they end, so those of processes that have ended are waited for.
    """
    deadline = time.monotonic() + _GOODBYE
    while _number(control, _SESSIONS) and time.monotonic() < deadline:
        time.sleep(0.01)
    control.execute("select pg_stat_force_next_flush()")  # what this session has left behind itself
    return _number(control, _DEAD)


def _number(control: psycopg.Connection, query: str) -> int:
    row = control.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _stat(file: Path) -> list[str] | None:
    """The fields after the name, which may hold spaces and parentheses; None when the process is gone."""
    try:
        return file.read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _postmaster(backend: int) -> int | None:
    """The parent of a backend, when that process is a Postgres of this machine."""
    folder = _PROC / str(backend)
    try:
        if not (folder / "comm").read_text().startswith("postgres"):
            return None
    except OSError:
        return None
    fields = _stat(folder / "stat")
    return int(fields[1]) if fields else None


def peak_memory(pid: int) -> float:
    """The most memory that a running process has had at once, in MiB; 0 where the system does not tell."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", (_PROC / str(pid) / "status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
