"""What metrics endpoints ask of Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from bridge.queries.connection import Connection

__all__ = ["Metric", "catalog", "read"]


class Metric(NamedTuple):
    """One series as it is now. Names follow Prometheus' conventions: seconds, bytes, and _total for counters."""

    name: str
    type: str
    help: str
    labels: dict[str, str]
    value: float


def read(connection: Connection) -> list[Metric]:
    """Every series that ``bridge.metrics()`` knows, those of one name in a row."""
    with translated():
        rows = connection.execute("select m.name, m.type, m.help, m.labels, m.value from bridge.metrics() m").fetchall()
    return [Metric._make(row) for row in rows]


def catalog(connection: Connection) -> dict[str, tuple[str, str]]:
    """Type and help of every metric by its name, whether it has series now or not."""
    with translated():
        rows = connection.execute("select c.name, c.type, c.help from bridge.metric_catalog() c").fetchall()
    return {name: (kind, words) for name, kind, words in rows}
