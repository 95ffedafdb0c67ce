"""What a run of the laboratory is to be: strikes and surroundings that a seed gives, and a command line that says which."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from laboratory import surroundings
from laboratory.__main__ import main, plan_of
from laboratory.errors import LabError
from laboratory.faults import FAULTS
from laboratory.runner import HAVING, Plan, beats_of, kinds_of, needs_of
from laboratory.world import Needs

TESTS = Path(__file__).parent


def test_a_seed_gives_the_same_strikes_again_and_every_fault_before_one_comes_twice() -> None:
    plan = Plan(seconds=600, seed=7)
    beats = beats_of(plan)
    assert beats == beats_of(plan) != beats_of(replace(plan, seed=8))
    cards = {kind.group or kind.name for kind in kinds_of(plan)}
    assert {FAULTS[beat.fault].group or beat.fault for beat in beats[: len(cards)]} == cards


def test_of_a_group_that_a_plan_names_every_fault_comes_before_one_comes_twice() -> None:
    group = tuple(name for name, kind in FAULTS.items() if kind.group == "drainer-sent" and kind.needs.fits(Needs(broker="redis")))
    beats = beats_of(Plan(seconds=600, seed=7, faults=group))
    assert len(group) > 1
    assert {beat.fault for beat in beats[: len(group)]} == set(group)


def test_a_fault_that_is_unknown_or_does_not_fit_the_broker_is_refused() -> None:
    with pytest.raises(LabError, match="no fault is called drainer-kil"):
        kinds_of(Plan(faults=("drainer-kil",)))
    assert FAULTS["drainer-kill"] in kinds_of(Plan(broker="rabbitmq"))


def test_what_a_world_has_beside_the_usual_brings_the_faults_that_need_it() -> None:
    plain = {kind.name for kind in kinds_of(Plan())}
    more = {kind.name for kind in kinds_of(Plan(having=("standby-async", "disk")))}
    assert more - plain == {"failover-async", "disk-full", "disk-full-log"}
    with pytest.raises(LabError, match="standby-async cannot be had together with standby-sync"):
        kinds_of(Plan(having=("standby-sync", "standby-async")))


def test_seeds_draw_every_broker_and_all_that_there_is_beside_it_and_what_they_draw_fits() -> None:
    drawn = [surroundings.draw(seed) for seed in range(100)]
    assert drawn == [surroundings.draw(seed) for seed in range(100)]
    assert {broker for broker, _ in drawn} == {"redis", "rabbitmq"}
    assert {word for _, having in drawn for word in having} == set(HAVING)
    struck = set()
    for broker, having in drawn:
        needs_of(plan := Plan(broker=broker, having=having))
        struck |= {kind.name for kind in kinds_of(plan)}
    assert struck == {name for name, kind in FAULTS.items() if not kind.lacks()} | {kind.name for kind in kinds_of(Plan())}


def test_what_the_machine_lacks_is_left_out_and_told() -> None:
    said: list[str] = []
    lacks = {"rabbitmq": lambda: "get it", "cron": lambda: None, "disk": lambda: "mount one", "pgbouncer": lambda: "not asked for"}
    assert surroundings.at_hand("rabbitmq", ("cron", "disk"), said.append, lacks) == ("redis", ("cron",))
    assert said == ["without rabbitmq, which the seed has drawn: get it", "without disk, which the seed has drawn: mount one"]


def plan_for(*words: str) -> Plan:
    return plan_of(main.make_context("laboratory", list(words)).params)


def test_what_is_given_is_kept_and_nothing_is_drawn_beside_it() -> None:
    seeds = [str(number) for number in range(10)]
    for words, wanted in (
        (("--with", "standby-async"), ("redis", ("standby-async",))),
        (("--with", "nothing"), ("redis", ())),
        (("--broker", "rabbitmq"), ("rabbitmq", ())),
        (("--faults", "redis-flush"), ("redis", ())),
        (("--minutes", "90"), ("redis", ())),
    ):
        plans = [plan_for(*words, "--seed", seed) for seed in seeds]
        assert {(plan.broker, plan.having) for plan in plans} == {wanted}
    alone = [plan_for("--seed", seed) for seed in seeds]
    assert [(one.broker, one.having) for one in alone] == [
        surroundings.at_hand(*surroundings.draw(int(seed)), lambda _line: None) for seed in seeds
    ]


def laboratory(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-m", "laboratory", *words]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)


def test_the_command_lists_its_faults_and_refuses_one_that_it_does_not_know() -> None:
    listed = laboratory("--list")
    assert listed.returncode == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(FAULTS)
    refused = laboratory("--faults", "drainer-kil", "--seed", "7")
    assert refused.returncode == 2
    assert "no fault is called drainer-kil: --list shows those that are" in refused.stderr
    assert refused.stdout.startswith("seed 7: redis; repeat it with --seed 7")
