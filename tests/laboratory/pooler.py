"""A pgbouncer in transaction mode before a database, where each transaction may run in another session."""

from __future__ import annotations

from bridge.local.pooler import HOW_TO_GET_IT, Pooler, find_pgbouncer

__all__ = ["HOW_TO_GET_IT", "Pooler", "find_pgbouncer"]
