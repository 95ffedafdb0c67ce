"""Who runs jobs: plain Celery in its two ways, we, and the peers that the user names."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bridge.bench.contestants.contestant import Contestant
from bridge.bench.contestants.ours import Bridge
from bridge.bench.contestants.peer import Peer
from bridge.bench.contestants.plain import DatabaseResults, RedisResults

if TYPE_CHECKING:
    from bridge.bench.rig import Rig
    from bridge.bench.rounds import Options

__all__ = ["Bridge", "Contestant", "DatabaseResults", "Peer", "RedisResults", "contestants"]

# Further ways of ours to run the same jobs, such as several in one message, are subclasses of Bridge, and have their place here.
_OURS: tuple[type[Bridge], ...] = (Bridge,)


def contestants(rig: Rig, options: Options) -> dict[str, Contestant]:
    """All that can run here, by name; plain Celery's database results need SQLAlchemy."""
    found: list[Contestant] = [RedisResults(rig)]
    if importlib.util.find_spec("sqlalchemy") is not None:
        found.append(DatabaseResults(rig))
    found += [ours(rig) for ours in _OURS]
    found += [Peer(rig, file, options.python) for file in options.peers]
    return {one.name: one for one in found}
