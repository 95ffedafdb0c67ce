"""Every fault by itself, one after the other in a world a family and broker: with BRIDGE_TEST_EFFORT of 2 or more."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fix_effort import EFFORT, LONG
from fix_servers import missing
from laboratory.faults import FAULTS, Fault
from laboratory.faults.network import NetworkFault
from laboratory.runner import Plan, needs_of, run_in_turn
from laboratory.surroundings import LACKS
from laboratory.world import Needs

BROKERS = ("redis", "rabbitmq")
LINE, OTHER = 20.0, 10.0  # seconds: a line's state meets what is under way, the others what they name
FIRST = 3.0  # and from the beginning of a run to the end of its first strike


def family_of(kind: type[Fault]) -> str:
    """Whose world it strikes in: that of a line, of a group, of a kind of standby, or of the first word of its name."""
    if issubclass(kind, NetworkFault):
        return f"{kind.role}-{kind.server}"
    if kind.group:
        return kind.group
    return f"standby-{kind.needs.standby}" if kind.needs.standby else kind.name.partition("-")[0]


def seconds_of(kind: type[Fault]) -> float:
    """How long it strikes, again and again: its first strike, at least, is mended no earlier than it says."""
    return max((LINE if issubclass(kind, NetworkFault) else OTHER) * (EFFORT - 1), FIRST + kind.hold[1])


MATRIX: dict[tuple[str, str], list[str]] = defaultdict(list)
for name, kind in sorted(FAULTS.items()):
    for broker in BROKERS:
        if kind.needs.fits(Needs(broker=broker)):  # type: ignore[arg-type]
            MATRIX[family_of(kind), broker].append(name)


def plans_of(family: str, broker: str) -> list[Plan]:
    """A plan for each fault of a family, which has the patience to see it strike."""
    kinds = [FAULTS[name] for name in MATRIX[family, broker]]
    return [
        Plan(seconds=seconds_of(kind), seed=EFFORT, broker=broker, faults=(kind.name,), every=5.0, rate=8.0, patience=60.0)
        for kind in kinds
    ]


def test_every_fault_has_a_place_in_the_matrix_with_every_broker_that_it_can_be_had_with() -> None:
    for family, broker in MATRIX:
        needs_of(*plans_of(family, broker))
    for broker in BROKERS:
        there = {name for (_, its), names in MATRIX.items() for name in names if its == broker}
        assert there == {name for name, kind in FAULTS.items() if kind.needs.broker in (None, broker)}


@LONG
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("family", "broker"), MATRIX)
def test_nothing_is_lost_and_nothing_runs_twice_whatever_strikes_alone(family: str, broker: str) -> None:
    plans = plans_of(family, broker)
    needs = needs_of(*plans)
    for word in (broker, *(word for word in LACKS if getattr(needs, word, False))):
        if lack := LACKS[word]():
            missing(word, lack)
    for kind in (FAULTS[name] for plan in plans for name in plan.faults):
        if lack := kind.lacks():
            missing(kind.name, lack)
    reports = run_in_turn(plans)
    assert reports[-1].sins == [], "\n".join(reports[-1].lines)
    for report in reports:
        assert report.struck == set(report.plan.faults), "\n".join(report.lines)
    assert len(reports) == len(plans)
