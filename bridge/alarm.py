"""The drainer's part in alerts: it reports trouble of its broker, says alerts in its log, and looks at the rules where nobody ticks."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge.errors import PublishError
from bridge.queries.monitoring import watch_alerts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.queries.connection import Connection

__all__ = ["Alarm", "Trouble"]

log = logging.getLogger("bridge.alerts")

_LEVELS = {"critical": logging.ERROR, "warning": logging.WARNING}


class Alarm:
    """Remembers what it has said: a reminder and an end are said once each, too."""

    def __init__(self) -> None:
        self._said: set[tuple[int, str]] = set()

    def say(self, connection: Connection) -> None:
        """Log what was told within the last minute."""
        rows = watch_alerts(connection)
        for row in rows:
            event = row["event"].partition(" ")[0]
            if (row["id"], row["event"]) not in self._said:
                level = logging.INFO if event == "resolved" else _LEVELS.get(row["severity"], logging.INFO)
                log.log(
                    level, "alert %s id=%d rule=%s severity=%s found=%s", event, row["id"], row["rule"], row["severity"], row["message"]
                )
        self._said = {(row["id"], row["event"]) for row in rows}


class Trouble:
    """Whether jobs get into the broker, as this drainer reports it: when one last did, and since when none does, with the reason."""

    def __init__(self) -> None:
        self._published_at: str | None = None
        self._reason, self._since = "", ""

    def note(self, error: BaseException | None) -> None:
        """An outage; that of Postgres is no trouble of the broker."""
        if isinstance(error, PublishError):
            self._since = self._since or datetime.now(UTC).isoformat()
            self._reason = " ".join(str(error).split())[:500]

    def published(self) -> None:
        """The broker has taken something."""
        self._published_at = datetime.now(UTC).isoformat()

    def over(self) -> None:
        """What there was to publish is published."""
        self._reason, self._since = "", ""

    def facts(self, refused: Sequence[str]) -> dict[str, object]:
        """For the report, with the queues that the broker refuses; what does not hold is left out."""
        found = {"published_at": self._published_at, "trouble": self._reason, "since": self._since, "refused": list(refused)}
        return {name: value for name, value in found.items() if value}
