"""A long run is judged by what its processes keep, and its page says what repeats it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from laboratory import plots
from laboratory.__main__ import ELDERS, main, plan_of
from laboratory.faults import MISSED, OBEYED, STRUCK
from laboratory.judgement import MIB, judge
from laboratory.report import Blow, Report
from laboratory.runner import Plan, beats_of
from laboratory.samples import Process, Sample

if TYPE_CHECKING:
    from pathlib import Path


def long_run(**grows: float) -> list[Sample]:
    """Ten minutes of a drainer, a pool child and connections; what is named grows by so much until the end."""

    def process(kind: str, at: float, **more: float) -> Process:
        anonymous, handles = (base + more.get(name, 0.0) * at / 600 for name, base in (("anonymous", 50 * MIB), ("handles", 20)))
        return Process(kind, 7, 1.0, int(anonymous), int(anonymous), int(handles), 3)

    memory, handles = {"anonymous": grows.get("memory", 0.0)}, {"handles": grows.get("handles", 0.0)}
    return [
        Sample(
            float(at), asked=at, finished=at, connections={"bridge drain": 2 + int(grows.get("connections", 0) * at / 600)},
            processes=[process("drainer", at, **memory), process("pool child", at, **handles)],
        )
        for at in range(0, 600, 5)
    ]  # fmt: skip


def life(pid: int, minutes: int, **grows: float) -> list[tuple[int, Process]]:
    """A worker's main process, sampled twice a minute; what is named grows by so much until its end."""

    def process(at: float) -> Process:
        anonymous, handles = (base + grows.get(name, 0.0) * at / minutes for name, base in (("anonymous", 20 * MIB), ("handles", 40)))
        return Process("worker", pid, float(pid), int(anonymous), int(anonymous), round(handles), 2)

    return [(half, process(half / 2)) for half in range(2 * minutes)]


def side_by_side(*lives: list[tuple[int, Process]]) -> list[Sample]:
    return [
        Sample(30.0 * half, processes=[process for one in lives for at, process in one if at == half])
        for half in range(max(len(one) for one in lives))
    ]


def test_one_old_life_that_grows_is_a_sin_beside_four_young_ones_that_do_not() -> None:
    young = [life(pid, 12) for pid in (2, 3, 4, 5)]
    assert judge(side_by_side(life(1, 89), *young), {}) == []
    assert judge(side_by_side(life(1, 89), life(2, 12, handles=20), *young[1:]), {}) == [], "it may have met much at its end"
    for name, size, rule in (("handles", 20, "handles_left_open"), ("anonymous", 12 * MIB, "memory_grew")):
        (sin,) = judge(side_by_side(life(1, 89, **{name: size}), *young), {})
        assert sin.rule == rule
        assert "pid 1 " in sin.words
        assert "pid 2 " not in sin.words


def test_a_long_run_is_judged_by_memory_handles_and_connections(tmp_path: Path) -> None:
    assert judge(long_run(memory=5 * MIB, handles=2, connections=2), {}) == []
    assert judge(long_run(memory=40 * MIB), {7: 200}) == [], "Celery's own"
    for name, rule in (("memory", "memory_grew"), ("handles", "handles_left_open"), ("connections", "connections_left_open")):
        (sin,) = judge(long_run(**{name: 40 * MIB if name == "memory" else 40}), {7: 10})
        assert sin.rule == rule
    plan = Plan(seconds=600, seed=7, broker="rabbitmq", having=("cron", "bundles"))
    blows = [Blow(1.0, "client-kill", STRUCK), Blow(2.0, "child-kill-failed", OBEYED), Blow(3.0, "child-kill-failed", MISSED)]
    report = Report(plan, beats_of(plan), blows, counts={"asked": 600})
    pictures = plots.draw(report, long_run(), tmp_path / "long-run")
    page = plots.page(report, long_run(), pictures, "long-run")
    assert "**0 sins.** asked 600." in page
    assert "| `child-kill-failed` | 1 | 1 |\n| `client-kill` | 1 | 0 |" in page
    repeated = re.search(r"`make chaos ARGS='(.*)'`\nwith bridge \d", page)
    assert repeated is not None
    with main.make_context("laboratory", repeated[1].split()) as context:
        assert plan_of(context.params) == replace(plan, spared=ELDERS)
    assert all((tmp_path / "long-run" / name).read_text().startswith("<?xml") and name in page for name, _ in pictures)
