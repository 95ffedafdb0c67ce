"""What a run says: one JSON document, and tables of the same."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bridge.bench.cost import CHILDREN, MAIN
from bridge.bench.measure import Outcome, Ratio, Spread, Target, ratios, spreads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

__all__ = ["document", "print_report"]

_KINDS = ("client", "drainer", "postgres", MAIN, CHILDREN, "redis")


def document(outcome: Outcome) -> dict[str, Any]:
    """One scenario as JSON values."""
    found = ratios(outcome)
    return {
        "name": outcome.name, "condition": outcome.condition, "about": outcome.about,
        "notes": list(outcome.notes), "baseline": outcome.baseline,
        "figures": [asdict(spread) for spread in spreads(outcome)],
        "ratios": [asdict(ratio) for ratio in found],
        "targets": [judged for target in outcome.targets if (judged := _judged(target, outcome, found))],
        "cpu_us_per_job": {side: dict(_cpu(outcome, side)) for side in _sides(outcome)},
        "rounds": [[asdict(sample) for sample in samples] for samples in outcome.rounds],
    }  # fmt: skip


def _judged(target: Target, outcome: Outcome, found: list[Ratio]) -> dict[str, Any] | None:
    """What became of a target; None when its figure could not be had here."""
    candidates: list[Spread] = [*found] if target.ratio else spreads(outcome)
    of = target.of or outcome.baseline
    same = (item for item in candidates if not isinstance(item, Ratio) or item.baseline == of)
    value = next((item.median for item in same if (item.side, item.figure) == (target.side, target.figure)), None)
    return None if value is None else {**asdict(target), "value": value, "met": target.met(value)}


def _sides(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(sample.side for samples in outcome.rounds for sample in samples))


def _cpu(outcome: Outcome, side: str) -> Iterator[tuple[str, float]]:
    samples = [sample for samples in outcome.rounds for sample in samples if sample.side == side]
    for kind in _KINDS:
        values = [sample.cpu_us[kind] for sample in samples if kind in sample.cpu_us]
        if values:
            yield kind, median(values)


def print_report(console: Console, facts: dict[str, Any], scenarios: list[dict[str, Any]]) -> None:
    """Print what was run where, then two tables a scenario."""
    machine, servers = facts["machine"], facts["servers"]
    console.print(f"{facts['date']}  {machine['processor']}, {machine['cores']} cores, {machine['memory_mib']} MiB, {machine['system']}")
    console.print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    console.print(", ".join(f"{name} = {value}" for name, value in servers["postgres"].items()))
    console.print(f"a small commit takes {servers['commit_ms']} ms; load before the start {machine['load_1m']}")
    for scenario in scenarios:
        if "skipped" in scenario:
            console.print(f"\n[bold]{scenario['name']}[/bold]: left out: {scenario['skipped']}")
        else:
            _print_scenario(console, scenario)


def _print_scenario(console: Console, scenario: dict[str, Any]) -> None:
    console.print()
    condition = "".join(f", {name} {value:g}" for name, value in scenario["condition"].items())
    console.print(f"[bold]{scenario['name']}{condition}[/bold]: {scenario['about']}")
    for note in scenario["notes"]:
        console.print(f"  {note}", style="dim")
    console.print(_figures(scenario))
    if any(scenario["cpu_us_per_job"].values()):
        console.print(_costs(scenario))


def _figures(scenario: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("side", "figure", "median", "range", f"of {scenario['baseline'] or '-'}", "range", "to reach", "reached"):
        table.add_column(name, justify="left" if name in {"side", "figure"} else "right")
    of = {(ratio["side"], ratio["figure"]): ratio for ratio in scenario["ratios"] if ratio["baseline"] == scenario["baseline"]}
    wanted = {(target["side"], target["figure"]): target for target in scenario["targets"] if target["of"] is None}
    for row in scenario["figures"]:
        key = (row["side"], row["figure"])
        table.add_row(*key, _number(row["median"]), _range(row), *_compared(of.get(key)), *_wanted(wanted.get(key)))
    for target in scenario["targets"]:
        if target["of"] is not None:
            key, base = (target["side"], target["figure"]), target["of"]
            other = next(ratio for ratio in scenario["ratios"] if (ratio["side"], ratio["figure"], ratio["baseline"]) == (*key, base))
            table.add_row(key[0], f"{key[1]} of {base}", "", "", *_compared(other), *_wanted(target))
    return table


def _compared(ratio: dict[str, Any] | None) -> tuple[str, str]:
    return ("", "") if ratio is None else (f"{ratio['median']:.2f}", f"{ratio['low']:.2f} - {ratio['high']:.2f}")


def _wanted(target: dict[str, Any] | None) -> tuple[str, str]:
    if target is None:
        return "", ""
    return f"{'≥' if target['at_least'] else '≤'} {target['bound']:g}", "yes" if target["met"] else "[red]no[/red]"


def _range(row: dict[str, Any]) -> str:
    return f"{_number(row['low'])} - {_number(row['high'])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"  # noqa: PLR2004 - three digits are enough


def _costs(scenario: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("CPU µs a job")
    for kind in (*_KINDS, "all"):
        table.add_column(kind, justify="right")
    for side, cpu in scenario["cpu_us_per_job"].items():
        table.add_row(side, *(f"{cpu[kind]:,.0f}" if kind in cpu else "" for kind in _KINDS), f"{sum(cpu.values()):,.0f}")
    return table
