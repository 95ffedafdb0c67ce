"""What `bridge bench` makes of its samples: ratios, targets, tables, a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from bridge.bench.measure import Outcome, Sample, Target
from bridge.bench.plot import draw
from bridge.bench.report import document, print_report
from bridge.bench.soak import Soak, State

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = (
    (
        Sample("celery", 10, {"jobs_per_s": 100.0}, {"worker main": 5.0}),
        Sample("db", 10, {"jobs_per_s": 10.0}),
        Sample("bridge", 10, {"jobs_per_s": 120.0}),
    ),
    (Sample("bridge", 10, {"jobs_per_s": 300.0}), Sample("celery", 10, {"jobs_per_s": 200.0}), Sample("db", 10, {"jobs_per_s": 50.0})),
    (Sample("db", 10, {"jobs_per_s": 20.0}), Sample("bridge", 10, {"jobs_per_s": 90.0}), Sample("celery", 10, {"jobs_per_s": 100.0})),
)
TARGETS = (Target("bridge", "jobs_per_s", 1.0), Target("bridge", "jobs_per_s", 7.0, of="db"), Target("nobody", "jobs_per_s", 1.0))
FACTS = {
    "date": "2026-01-01T00:00:00+00:00", "machine": {"processor": "p", "cores": 2, "memory_mib": 1, "system": "s", "load_1m": 0.0},
    "versions": {"bridge": "0"}, "servers": {"postgres": {"fsync": "on"}, "commit_ms": 1.0},
}  # fmt: skip
SKIPPED = {"name": "clients", "condition": {}, "skipped": "no pgbouncer here"}


def said() -> dict[str, object]:
    outcome = Outcome("e2e", {"prefork": 2}, "about", ("note",), ROUNDS, "celery", ("db",), TARGETS)
    return document(outcome)


def test_a_ratio_is_the_median_of_ratios_within_rounds_to_each_baseline() -> None:
    ratios = {(ratio["side"], ratio["baseline"]): (ratio["median"], ratio["low"], ratio["high"]) for ratio in said()["ratios"]}
    assert ratios["bridge", "celery"] == (1.2, 0.9, 1.5)
    assert ratios["bridge", "db"] == (6.0, 4.5, 12.0)


def test_a_target_is_held_against_its_own_baseline_and_left_out_where_its_side_is_missing() -> None:
    assert [(target["of"], target["value"], target["met"]) for target in said()["targets"]] == [(None, 1.2, True), ("db", 6.0, False)]


def test_the_text_names_condition_ratios_and_what_was_left_out() -> None:
    text = io.StringIO()
    print_report(Console(file=text, width=140), FACTS, [said(), SKIPPED])
    lines = text.getvalue().splitlines()
    assert "e2e, prefork 2: about" in lines
    assert any(
        line.split() == ["bridge", "jobs_per_s", "120", "90.00", "-", "300", "1.20", "0.90", "-", "1.50", "≥", "1", "yes"] for line in lines
    )
    assert any("jobs_per_s of db" in line and line.endswith("no") for line in lines)
    assert "clients: left out: no pgbouncer here" in lines


def test_a_picture_has_a_row_for_each_scenario_that_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.svg"
    draw({**FACTS, "scenarios": [said(), SKIPPED]}, file)
    assert "<svg" in file.read_text()


def test_a_soak_names_what_has_grown_by_half() -> None:
    def state(at: float, size: int) -> State:
        return State(at, 0, {name: (size if name == "ready" else 1000, 1000, 0, 0) for name in ("job", "ready", "inflight")})

    soak = Soak(rig=None, seconds=100.0, every=10.0, states=[state(at, 10 << 20 if at < 60 else 30 << 20) for at in range(10, 101, 10)])  # type: ignore[arg-type]
    soak.waits = [(float(at), 100.0) for at in range(100)]
    assert soak.grown() == [f"table of ready: {10 << 20} to {30 << 20} bytes"]
    soak.waits = [(float(at), 100.0 if at < 60 else 200.0) for at in range(100)]
    assert soak.grown()[1:] == ["p99: 100 to 200 ms"]
