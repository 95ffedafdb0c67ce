"""Who runs jobs: plain Celery in its two ways, we, and the peers that the user names."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bridge.bench.contestants.contestant import Contestant
from bridge.bench.contestants.ours import Bridge, Bundles, Streaming
from bridge.bench.contestants.peer import Peer
from bridge.bench.contestants.plain import DatabaseResults, RedisResults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Bridge", "Bundles", "Contestant", "DatabaseResults", "Peer", "RedisResults", "Streaming", "contestants"]


def contestants(rig: Rig, options: Options, ours: Sequence[type[Bridge]] = (Bridge,)) -> dict[str, Contestant]:
    """All that can run here, by name, our own ways among them; plain Celery's database results need SQLAlchemy."""
    found: list[Contestant] = [RedisResults(rig)]
    if importlib.util.find_spec("sqlalchemy") is not None:
        found.append(DatabaseResults(rig))
    found += [way(rig) for way in ours]
    found += [Peer(rig, file, options.python) for file in options.peers]
    return {one.name: one for one in found}
