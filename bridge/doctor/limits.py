"""From where on a check is not satisfied."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bridge.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Limits"]


class Limits(BaseModel):
    """Thresholds of the checks. Durations are seconds, shares are of 1.

    The defaults suit a machine on which delayed jobs should start within seconds. Raise one when a check complains about what is usual
    for you; lower it to hear of trouble sooner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tick_late: float = Field(default=15.0, ge=0, description="seconds since the last tick; above the tick interval")
    drainer_silent: float = Field(default=15.0, ge=0, description="seconds since a drainer's last report; it reports every 5")
    worker_silent: float = Field(
        default=0.0, ge=0, description="seconds since a worker's last report; 0 takes the setting worker_lost, by which it loses its runs"
    )
    queued_late: float = Field(default=60.0, ge=0, description="seconds that a due job may wait for a drainer")
    clock_skew: float = Field(
        default=2.0, ge=0, description="seconds between a machine's clock and the database's; an ETA computed there is off by as much"
    )
    snapshot_age: float = Field(default=300.0, ge=0, description="seconds that a transaction may keep dead rows from being vacuumed")
    slot_lag: int = Field(default=1_000_000, ge=0, description="transactions that a replication slot in use may be behind")
    connections_used: float = Field(default=0.8, ge=0, le=1, description="share of the connections that ordinary roles may have")
    memory_used: float = Field(default=0.9, ge=0, le=1, description="share of the broker's maxmemory")
    days_ahead: int = Field(
        default=2, ge=0, le=6, description="days after today that must have their partitions; install and the tick make 6"
    )

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Limits:
        """The defaults, with some changed, each by its name and text.

        Raises:
            SettingError: no such limit, or a value that it cannot have.
        """
        for name in given:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                raise SettingError(f"unknown limit {name}" + (f", did you mean {near[0]}?" if near else ""), "see bridge doctor --limits")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as problem:
            first = problem.errors()[0]
            name = str(first["loc"][0])
            raise SettingError(
                f"limit {name} is {given[name]!r}: {first['msg'].lower()}", cls.model_fields[name].description or ""
            ) from None
