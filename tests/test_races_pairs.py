"""Two sessions, every pair of functions that change state, on one job: it becomes of it what comes of one after the other.

The second comes while the first has done its own and has not committed. Then the first commits, or rolls back. The gate tries some hundred
pairs, the same each time, in which each function comes first, and second, at least once; BRIDGE_TEST_EFFORT=240 tries all, in all stages of
a job, both ways.
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

STRIDE = max(1, 240 // EFFORT)  # of the pairs of a stage, each how-manieth is tried beside those of pairs_for_each
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


def names_of(stage: str) -> list[str]:
    """The functions that have something to do, or to refuse, in a stage."""
    return [name for name, call in CALLS.items() if stage in call.stages.split()]


def pairs_for_each() -> dict[str, list[tuple[str, str]]]:
    """Pairs by stage, few, in which each function comes first once, and second once: where the fewest others have something to do."""
    pairs: dict[str, list[tuple[str, str]]] = {stage: [] for stage in STAGES}
    firsts, seconds = set(CALLS), set(CALLS)
    for stage in sorted(STAGES, key=lambda stage: len(names_of(stage))):
        names = names_of(stage)
        new = [[name for name in names if name in firsts], [name for name in reversed(names) if name in seconds]]
        count = max(map(len, new))
        first, second = (itertools.islice(itertools.cycle(some or names), count) for some in new)
        pairs[stage] = list(zip(first, second, strict=True))
        firsts -= set(names)
        seconds -= set(names)
    return pairs


FOR_EACH = pairs_for_each()


def pairs_of(stage: str) -> list[tuple[str, str]]:
    """The pairs that are tried of a stage: those for each function, and a stride through all."""
    pairs = list(itertools.product(names_of(stage), repeat=2))
    return list(dict.fromkeys(FOR_EACH[stage] + pairs[len(stage) % STRIDE :: STRIDE]))


def test_each_function_comes_first_and_second_in_some_pair() -> None:
    pairs = [pair for stage in STAGES for pair in pairs_of(stage)]
    assert {first for first, _ in pairs} == {second for _, second in pairs} == set(CALLS)


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
