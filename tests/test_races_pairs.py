"""Two sessions, every pair of functions that change state, on one job: it becomes of it what comes of one after the other.

The second comes while the first has done its own and has not committed. Then the first commits, or rolls back. The gate tries some hundred
pairs, the same each time; BRIDGE_TEST_EFFORT=60 tries all, in all stages of a job, both ways.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from fix_effort import EFFORT
from invariants import assert_sound
from races_run import Met, Outcome, Races
from races_table import CALLS
from races_world import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

STRIDE = max(1, 60 // EFFORT)  # of the pairs of a stage, each how-manieth is tried
# What the answers of two say otherwise than those of one after the other; the job is the same.
EXCUSED = {
    ("cancel_jobs", "cancel_jobs"): "both count a job that one of them has cancelled",
    ("mark_published", "purge"): "how many were with the broker is told by the moment before",
}


@pytest.fixture
def races(dsn: str) -> Iterator[Races]:
    races = Races(dsn)
    yield races
    races.close()
    assert_sound(dsn)


def pairs_of(stage: str) -> list[tuple[str, str]]:
    """The pairs that are tried of a stage: an odd stride through all of them comes to each function."""
    names = [name for name, call in CALLS.items() if stage in call.stages.split()]
    pairs = list(itertools.product(names, repeat=2))
    return pairs[len(stage) % STRIDE :: STRIDE]


def is_serial(met: Met, races: Races, stage: str, first: str, second: str) -> bool:
    """Whether what came of both is what comes of one after the other; who leaves alone what is in other hands may have done nothing."""
    one, two = CALLS[first], CALLS[second]
    expected = races.one_by_one(stage, one, two)
    if met.outcome == expected or ((two.skips or (first, second) in EXCUSED) and met.outcome.world == expected.world):
        return True
    turned = races.one_by_one(stage, two, one)
    if met.outcome == Outcome(turned.second, turned.first, turned.world):
        return True
    return two.skips and met.outcome.world in (turned.world, races.one_by_one(stage, one).world)


def test_two_at_once_come_to_what_one_after_the_other_comes_to(races: Races) -> None:
    for stage in STAGES:
        races.maker.clear()
        for first, second in pairs_of(stage):
            met = races.at_once(stage, CALLS[first], CALLS[second])
            assert not (CALLS[second].passes and met.waited), f"{stage}: {second} waits for {first}"
            assert is_serial(met, races, stage, first, second), f"{stage}: {first}, and {second} meanwhile: {met}"


def test_of_a_first_that_rolls_back_nothing_is_left_to_the_second(races: Races) -> None:
    for stage in STAGES:
        races.maker.clear()
        for first, second in pairs_of(stage)[:: 1 if EFFORT > 1 else 4]:
            met = races.at_once(stage, CALLS[first], CALLS[second], commits=False)
            alone = races.one_by_one(stage, CALLS[second])
            is_left_alone = CALLS[second].skips and met.outcome.world in (alone.world, races.untouched(stage))
            assert is_left_alone or met.outcome[1:] == alone[1:], f"{stage}: {first} rolls back, {second} meanwhile: {met}, alone: {alone}"
