"""What work costs beside time: CPU by kind of process, bytes of WAL, peak memory.

CPU per job hardly moves when other programs share the cores; rates do. Both are printed.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    import redis

__all__ = ["Meter", "Reading", "peak_memory", "tree_cpu"]

_PROC = Path("/proc")
_MICROSECONDS = 1e6


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
        processes: process ids by kind; their children count with them.
    """

    def __init__(self, control: psycopg.Connection, broker: redis.Redis, processes: Mapping[str, int] | None = None) -> None:
        self._control = control
        self._broker = broker
        self._processes = dict(processes or {})
        postmaster = _postmaster(control.info.backend_pid)
        if postmaster is not None:
            self._processes["postgres"] = postmaster

    def read(self) -> Reading:
        """The counters now."""
        seconds = tree_cpu(set(self._processes.values()))
        cpu = {kind: seconds[pid] for kind, pid in self._processes.items() if pid in seconds}
        used = self._broker.info("cpu")
        cpu["redis"] = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
        row = self._control.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
        return Reading(cpu, int(row[0]) if row else 0)

    def since(self, start: Reading, jobs: int) -> tuple[dict[str, float], float]:
        """CPU microseconds by kind and WAL bytes, a job, since an earlier reading."""
        now = self.read()
        cpu = {kind: _MICROSECONDS * (now.cpu[kind] - start.cpu[kind]) / jobs for kind in now.cpu if kind in start.cpu}
        return cpu, (now.wal - start.wal) / jobs


def tree_cpu(roots: set[int]) -> dict[int, float]:
    """CPU seconds of these processes with all their children, the ended ones among them; only those that can be seen."""
    parents: dict[int, int] = {}
    own: dict[int, float] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        fields = _stat(entry)
        if fields is not None:
            pid = int(entry.parent.name)
            parents[pid], own[pid] = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    total: dict[int, float] = defaultdict(float)
    for pid, seconds in own.items():
        at: int | None = pid
        while at is not None and at not in roots:
            at = parents.get(at)
        if at is not None:
            total[at] += seconds
    return total


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
