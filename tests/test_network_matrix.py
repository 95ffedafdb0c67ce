"""Every state of the network between every pair, one run of the laboratory each: with BRIDGE_TEST_EFFORT of 2 or more."""

from __future__ import annotations

import pytest
from fix_effort import EFFORT
from laboratory.faults import FAULTS
from laboratory.runner import Plan, run

POOLED = ("pgbouncer-kill", "pgbouncer-stop")
CASES = [(name, broker) for name in sorted(FAULTS) if name.startswith("net-") or name in POOLED for broker in ("redis", "rabbitmq")]


if EFFORT > 1:

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize(("fault", "broker"), CASES)
    def test_nothing_is_lost_and_nothing_runs_twice_in_this_weather(fault: str, broker: str) -> None:
        report = run(Plan(seconds=20.0 * (EFFORT - 1), seed=EFFORT, broker=broker, faults=(fault,), every=5.0, rate=8.0))
        assert report.sins == [], "\n".join(report.lines)
