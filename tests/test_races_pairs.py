"""Two sessions, every pair of functions that change state, on one job: it becomes of it what comes of one after the other.

The second comes while the first has done its own and has not committed. Then the first commits, or rolls back. The gate tries some hundred
pairs, the same each time, in which each function comes first, and second, at least once; BRIDGE_TEST_EFFORT=240 tries all, in all stages of
a job, both ways.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from fix_effort import EFFORT
from invariants import assert_sound
from races_run import Met, Outcome, Races
from races_table import CALLS
from races_world import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

WORLDS = 50  # as many pairs share a database before it is cleared
STRIDE = max(1, 240 // EFFORT)  # of the pairs of a stage, each how-manieth is tried beside those of pairs_for_each
# What the answers of two say otherwise than those of one after the other; the job is the same.
EXCUSED = {
    ("mark_published", "purge"): "how many were with the broker is told by the moment before",
}
# Pairs in which a defect was found once, or could come back easily, by stage: these are tried each time.
KEPT = {
    "blocked": [("add_dependency", "enqueue, replace"), ("reschedule", "add_dependency"), ("complete", "add_dependency")],
    "scheduled": [("reschedule", "retry"), ("cancel", "retry"), ("enqueue, replace", "add_dependency"), ("move", "purge")],
    "ready": [("move", "cancel_jobs, queue"), ("move_jobs", "set_priority_jobs, queue"), ("purge", "cancel_jobs")],
    "held": [("end_delivery of the second", "cancel"), ("move", "purge"), ("claim", "enqueue, replace")],
    "limited": [("end_delivery of the second", "claim"), ("remove_limit", "cancel"), ("set_limit", "claim")],
    "rated": [("end_delivery of the second", "claim"), ("set_limit, rate", "claim"), ("remove_limit", "move"), ("claim", "remove_limit")],
    "shared": [("claim", "set_limit, share"), ("set_limit, share", "claim"), ("claim", "move"), ("enqueue, replace", "claim")],
    "running": [("note", "stop_worker"), ("finish_many", "cancel"), ("cancel", "start_many, again")],
    "several-published": [("start_many", "unbundle"), ("cancel_jobs", "start_many"), ("start_many", "release")],
    "several-running": [
        ("finish_many", "unbundle"),
        ("unbundle", "finish_many"),
        ("finish", "finish_many"),
        ("cancel_jobs", "start_many, again"),
        ("lose", "finish_many"),
        ("finish", "unbundle, not alone"),
        ("stop_worker", "start_many, again"),
    ],
    "several-orphaned": [("sweep", "finish_many"), ("finish_many", "tick")],
}

# Pairs that meet every day on one job, where they truly meet: each is tried both ways round, each time.
DAILY = {
    "ready": [("claim", "claim"), ("claim", "enqueue, replace"), ("claim", "start"), ("claim", "cancel")],
    "claimed": [("start", "start"), ("start", "cancel"), ("start", "claim"), ("start", "mark_published"), ("claim", "enqueue, replace")],
    "abandoned": [("sweep", "start"), ("sweep", "mark_published"), ("sweep", "claim"), ("sweep", "cancel")],
    "published": [("start", "start"), ("start", "cancel"), ("start", "claim"), ("start", "start_many"), ("start_many", "cancel")],
    "stranded": [("sweep", "start"), ("sweep", "cancel"), ("sweep", "start_many")],
    "missing": [("republish", "start"), ("sweep", "start"), ("republish", "cancel")],
    "running": [
        *(("cancel", end) for end in ("finish", "finish_many", "fail", "retry_run", "complete_run", "lose")),
        *(("lose", end) for end in ("finish", "finish_many")),
        ("finish", "finish"),
        ("sweep", "finish"),
        ("sweep", "retry"),
    ],
    "orphaned": [("sweep", "finish"), ("sweep", "cancel"), ("sweep", "retry"), ("lose", "finish")],
    "doomed": [("sweep", "finish"), ("sweep", "cancel"), ("sweep", "retry"), ("sweep", "fail")],
    "failed": [("sweep", "retry"), ("retry", "retry"), ("retry", "cancel")],
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
    """The pairs that are tried of a stage: the daily ones, those that are kept, those for each function, and a stride through all."""
    pairs = list(itertools.product(names_of(stage), repeat=2))
    daily = [order for first, second in DAILY.get(stage, []) for order in ((first, second), (second, first))]
    return list(dict.fromkeys(daily + KEPT.get(stage, []) + FOR_EACH[stage] + pairs[len(stage) % STRIDE :: STRIDE]))


def test_each_function_comes_first_and_second_in_some_pair() -> None:
    pairs = [pair for stage in STAGES for pair in pairs_of(stage)]
    assert {first for first, _ in pairs} == {second for _, second in pairs} == set(CALLS)


def test_each_pair_that_is_named_is_of_functions_that_have_something_to_do_in_its_stage() -> None:
    named = [(stage, name) for table in (DAILY, KEPT) for stage, pairs in table.items() for pair in pairs for name in pair]
    assert [(stage, name) for stage, name in named if name not in names_of(stage)] == []


def is_serial(met: Met, races: Races, stage: str, first: str, second: str) -> bool:
    """Whether what came of both is what comes of one after the other; who leaves alone what is in other hands may have done nothing."""
    one, two = CALLS[first], CALLS[second]
    expected = races.one_by_one(stage, one, two)
    if met.outcome == expected or ((two.skips or (first, second) in EXCUSED) and met.outcome.world == expected.world):
        return True
    turned = races.one_by_one(stage, two, one)
    if met.outcome == Outcome(turned.second, turned.first, turned.world):
        return True
    return two.skips and (met.outcome.world == turned.world or is_passed_by(met, second, races.one_by_one(stage, one).world))


def is_passed_by(met: Met, second: str, world: dict[str, Any]) -> bool:
    """Whether the second has left a world as it is, or all of it that is in other hands: the tick ends what it has passed by."""
    if second.startswith(("stop_worker", "unbundle")):
        world = world | {part: met.outcome.world.get(part) for part in ("second", "worker")}
    return met.outcome.world == {part: value for part, value in world.items() if value is not None}


def is_alike(met: Met, alone: Outcome, first: str, second: str) -> bool:
    """Whether the second came to what it comes to alone. The tick passes a worker's row by that is in other hands, and ends its jobs."""
    skips, there, wanted = CALLS[second].skips, met.outcome.world, alone.world
    if skips and first == "report_worker":
        there, wanted = ({**world, "worker": None} for world in (there, wanted))
    return there == wanted and (skips or met.outcome.second == alone.second)


@pytest.mark.parametrize("stage", ["abandoned", "stranded", "orphaned", "doomed"])
def test_the_sweep_takes_a_job_from_who_died_with_it(races: Races, stage: str) -> None:
    assert races.one_by_one(stage, CALLS["sweep"]).world["job"] != races.untouched(stage)["job"]


def tried(races: Races, step: int = 1) -> Iterator[tuple[str, str, str]]:
    """All stages and pairs that are tried; what looks at all jobs meets few worlds beside its own."""
    for stage in STAGES:
        for number, pair in enumerate(pairs_of(stage)[::step]):
            if number % WORLDS == 0:
                races.maker.clear()
            yield stage, *pair


def test_two_at_once_come_to_what_one_after_the_other_comes_to(races: Races) -> None:
    found = []
    for stage, first, second in tried(races):
        met = races.at_once(stage, CALLS[first], CALLS[second])
        if CALLS[second].passes and met.waited:
            found.append(f"{stage}: {second} waits for {first}")
        elif not is_serial(met, races, stage, first, second):
            serial = races.one_by_one(stage, CALLS[first], CALLS[second])
            found.append(f"{stage}: {first}, and {second} meanwhile / after it: {met.outcome.unlike(serial)}")
    assert found == []


def test_of_a_first_that_rolls_back_nothing_is_left_to_the_second(races: Races) -> None:
    found = []
    for stage, first, second in tried(races, 1 if EFFORT > 1 else 4):
        met = races.at_once(stage, CALLS[first], CALLS[second], commits=False)
        alone = races.one_by_one(stage, CALLS[second])
        if not is_alike(met, alone, first, second) and not (CALLS[second].skips and is_passed_by(met, second, races.untouched(stage))):
            found.append(f"{stage}: {first} rolls back, {second} meanwhile / alone: {met.outcome.unlike(alone)}")
    assert found == []
