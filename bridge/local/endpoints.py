"""Where a running stack is reached, and how another process finds out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bridge.local.home import FolderLock, state_home

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "stack.lock"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running stack is reached.

    Attributes:
        pid: the process that runs the stack.
        home: its folder; the logs are in `logs` below it.
        dsn: the database, as its superuser.
        broker_url: the broker.
        broker_folder: folder that clients of a `filesystem://` broker must run in; None for a real broker.
        flower_url: Flower's page; None when Flower is not there.
        postgres: version of the server.
        cron: whether it has pg_cron.
    """

    pid: int
    home: str
    dsn: str
    broker_url: str
    broker_folder: str | None
    flower_url: str | None
    postgres: str
    cron: bool

    def environment(self) -> dict[str, str]:
        """The variables that make every `bridge` command and every Celery application use this stack."""
        return {
            "BRIDGE_DATABASE_URL": self.dsn,
            "BRIDGE_BROKER_URL": self.broker_url,
            "CELERY_BROKER_URL": self.broker_url,  # Celery lets it win over the application's own setting
        }

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Endpoints | None:
        """Read what `to_json` wrote; None for any other text."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


def running_stack(home: Path | None = None) -> Endpoints | None:
    """Find the stack that another process runs in this home.

    Args:
        home: its folder; None for `state_home()`.

    Returns:
        None when no living process holds the home, or when its stack is not ready yet.
    """
    lock = FolderLock((home or state_home()) / LOCK)
    return Endpoints.from_json(lock.read()) if lock.is_held() else None
