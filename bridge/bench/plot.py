"""One picture of a run: for each scenario the ratios to its baseline, and what a job costs by kind of process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["draw", "require_plotting"]

_WIDTH, _ROW, _HEAD = 13.0, 0.28, 1.1  # inches: the picture, a bar, what is above and below the bars of a scenario


def require_plotting() -> None:
    """Say before anything is measured that nothing could be drawn.

    Raises:
        SettingError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingError("--plot needs matplotlib", 'install it: pip install "celery-bridge[bench]"') from error
    mpl.use("svg")


def draw(said: dict[str, Any], file: Path) -> None:
    """Draw a run's document.

    Args:
        said: what `--json` prints.
        file: where to; its ending names the format, such as `.svg`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    scenarios = [scenario for scenario in said["scenarios"] if "skipped" not in scenario]
    heights = [_HEAD + _ROW * max(len(_bars(scenario)), len(scenario["cpu_us_per_job"])) for scenario in scenarios]
    figure = Figure(figsize=(_WIDTH, sum(heights) or 1.0), layout="constrained")
    machine = said["machine"]
    figure.suptitle(f"{said['date'][:10]}, {machine['processor']}, {machine['cores']} cores", fontsize=10)
    axes = figure.subplots(max(len(scenarios), 1), 2, squeeze=False, height_ratios=heights or None)
    for (left, right), scenario in zip(axes, scenarios, strict=False):
        _draw_ratios(left, scenario)
        _draw_costs(right, scenario)
    figure.savefig(file)


def _bars(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratios where there is a baseline, else the figures themselves."""
    bars: list[dict[str, Any]] = scenario["ratios"] or scenario["figures"]
    return bars


def _draw_ratios(axis: Any, scenario: dict[str, Any]) -> None:
    bars = _bars(scenario)
    middles = [bar["median"] for bar in bars]
    below, above = [bar["median"] - bar["low"] for bar in bars], [bar["high"] - bar["median"] for bar in bars]
    axis.barh([_label(bar, scenario["baseline"]) for bar in bars], middles, xerr=[below, above], color="#6c9bd2", ecolor="#444444")
    axis.invert_yaxis()
    if scenario["ratios"]:
        axis.axvline(1.0, color="#444444", linewidth=0.8)
        axis.set_xlabel(f"of {scenario['baseline']} in the same round: median and range", fontsize=8)
    axis.set_xscale("log" if min(middles, default=0.0) > 0 else "linear")
    condition = "  ".join(f"{name} {value:g}" for name, value in scenario["condition"].items())
    axis.set_title(f"{scenario['name']}  {condition}", fontsize=9, loc="left")
    axis.tick_params(labelsize=7)


def _label(bar: dict[str, Any], baseline: str | None) -> str:
    """Side and figure, and what the figure is divided by where that is not the scenario's baseline."""
    other = bar.get("baseline", baseline)
    return f"{bar['side']}  {bar['figure']}" + ("" if other == baseline else f" of {other}")


def _draw_costs(axis: Any, scenario: dict[str, Any]) -> None:
    costs = scenario["cpu_us_per_job"]
    kinds = list(dict.fromkeys(kind for cpu in costs.values() for kind in cpu))
    if not kinds:
        axis.set_axis_off()
        return
    sides, starts = list(costs), [0.0] * len(costs)
    for kind in kinds:
        widths = [costs[side].get(kind, 0.0) for side in sides]
        axis.barh(sides, widths, left=starts, label=kind)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("CPU microseconds a job", fontsize=9, loc="left")
    axis.legend(fontsize=6, ncols=2)
    axis.tick_params(labelsize=7)
