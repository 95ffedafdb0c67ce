"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.bench.scenarios.clients import Clients
from bridge.bench.scenarios.drain import Drain
from bridge.bench.scenarios.end_to_end import EndToEnd
from bridge.bench.scenarios.enqueue import Enqueue
from bridge.bench.scenarios.gate import Gate
from bridge.bench.scenarios.growth import Growth
from bridge.bench.scenarios.held import Held
from bridge.bench.scenarios.latency import Latency
from bridge.bench.scenarios.lists import Lists
from bridge.bench.scenarios.memory import Memory
from bridge.bench.scenarios.split import Split
from bridge.bench.scenarios.urgent import Urgent

if TYPE_CHECKING:
    from bridge.bench.rounds import Scenario

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, type[Scenario]] = {
    kind.name: kind for kind in (Enqueue, Drain, EndToEnd, Latency, Split, Gate, Clients, Growth, Held, Lists, Memory, Urgent)
}
