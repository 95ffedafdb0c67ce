"""Every state of the network between every pair, one after the other in a world a pair: with BRIDGE_TEST_EFFORT of 2 or more."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fix_effort import EFFORT, LONG
from laboratory.faults import FAULTS
from laboratory.faults.network import NetworkFault, PoolerKilled
from laboratory.runner import Plan, run_in_turn

LINES: dict[str, list[str]] = defaultdict(list)
for name, kind in sorted(FAULTS.items()):
    if issubclass(kind, NetworkFault):
        LINES[f"{kind.role}-{kind.server}"].append(name)
    elif issubclass(kind, PoolerKilled):
        LINES["pgbouncer"].append(name)


@LONG
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("line", LINES)
def test_nothing_is_lost_and_nothing_runs_twice_in_any_weather(line: str, broker: str) -> None:
    seconds = 20.0 * (EFFORT - 1)
    plans = [Plan(seconds=seconds, seed=EFFORT, broker=broker, faults=(fault,), every=5.0, rate=8.0) for fault in LINES[line]]
    reports = run_in_turn(plans)
    assert reports[-1].sins == [], "\n".join(reports[-1].lines)
    assert len(reports) == len(plans)
