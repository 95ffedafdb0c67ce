"""Metrics from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.client import connection_of
from bridge.queries import metrics as queries

if TYPE_CHECKING:
    from bridge.queries.metrics import Metric

__all__ = ["metrics"]


def metrics(*, connection: Any = None) -> list[Metric]:
    """All series that there are now, by Prometheus' conventions; the table of them is in the documentation of metrics.

    Args:
        connection: whose transaction to ask in, as for ``enqueue``.

    Returns:
        name, type, help, labels and value of each; a counter never falls.
    """
    return queries.read(connection_of(connection))
