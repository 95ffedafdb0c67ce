"""Where figures come from: machine, versions, server settings."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import bridge

if TYPE_CHECKING:
    from bridge.bench.rig import Rig

__all__ = ["machine", "servers", "versions"]

_SETTINGS = ("shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "autovacuum")
_COMMITS = 50


def machine() -> dict[str, Any]:
    """Processor, cores that we may use, memory in MiB, system, and how busy it was when asked."""
    return {
        "processor": _found(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _found(file: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, file.read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


def versions(rig: Rig) -> dict[str, str]:
    """Of everything whose speed is measured."""
    packages = {name: version(name) for name in ("celery", "kombu", "billiard", "redis", "psycopg")}
    return {
        "bridge": bridge.__version__, "python": platform.python_version(), **packages, "postgres": str(rig.value("show server_version")),
        "redis_server": str(rig.broker.info("server")["redis_version"]),
    }  # fmt: skip


def servers(rig: Rig) -> dict[str, Any]:
    """How the servers are set, what a durable commit costs in milliseconds, and who ticks."""
    settings = {name: str(rig.value(f"show {name}")) for name in _SETTINGS}
    redis = rig.broker.config_get("save", "appendonly") if rig.servers.own else {}
    return {
        "own": rig.servers.own, "postgres": settings, "redis": redis, "commit_ms": round(_commit_ms(rig), 3),
        "pg_cron": rig.value("select extversion from pg_extension where extname = 'pg_cron'"),
    }  # fmt: skip


def _commit_ms(rig: Rig) -> float:
    """The median of one small commit after the other."""
    times = []
    for _ in range(_COMMITS):
        start = perf_counter()
        rig.value("select pg_logical_emit_message(true, 'bench', 'x')::text")
        times.append(perf_counter() - start)
    return 1000 * median(times)
