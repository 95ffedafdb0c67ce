"""Whether a drainer works: what its endpoint is asked for, kept by its loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Vitals"]

_CALLS = 6  # that one turn of the loop may wait for, each as long as the setting timeout allows


@dataclass
class Vitals:
    """Read by other threads: each field is written as a whole."""

    postgres: bool = False
    broker: bool = False
    turned_at: float = field(default_factory=time.monotonic)

    def turn(self) -> None:
        """The loop begins another turn."""
        self.turned_at = time.monotonic()

    def turns(self, timeout: float) -> bool:
        """Whether the loop goes round; ``timeout`` is what one call may take, in seconds."""
        return time.monotonic() - self.turned_at < 15.0 + _CALLS * timeout

    def facts(self) -> dict[str, Any]:
        """What a person sees."""
        return {"postgres": self.postgres, "broker": self.broker, "seconds_since_turn": round(time.monotonic() - self.turned_at, 1)}
