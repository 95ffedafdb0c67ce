"""The report of a long run: pictures, and a page for the documentation."""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import bridge
from laboratory.judgement import MIB, judged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laboratory.report import Report
    from laboratory.samples import Sample

HERE = Path(__file__).parent
SIZE = (9, 3)  # inches
STRUCK = {"color": "0.88", "linewidth": 0.6, "zorder": 0}
Lines = dict[str, list[tuple[float, float]]]


def draw(report: Report, samples: Sequence[Sample], folder: Path) -> list[tuple[str, str]]:
    """Draw all pictures; their file names and what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, str, str, Lines, bool]] = [
        ("rates", "Jobs a second, asked for and ended", "jobs/s", _rates(samples), False),
        ("places", "Live jobs by place, and messages in the broker", "jobs", _places(samples), False),
        ("ages", "Age of the oldest job in each place", "s", _by_name(samples, "ages"), False),
        ("memory", "Anonymous memory of a process, median of its kind", "MiB", _memory(samples), True),
        ("handles", "Open file handles of a process, median of its kind", "handles", _of_processes(samples, "handles", 1), False),
        ("connections", "Connections to Postgres by program, and to the broker", "connections", _connections(samples), False),
        ("tables", "Tables of the schema with their indexes", "MiB", _tables(samples), True),
    ]
    for name, title, unit, lines, logarithmic in pictures:
        _draw(folder / f"{name}.svg", title, unit, lines, [blow.at for blow in report.blows if blow.met], logarithmic=logarithmic)
    return [(f"{name}.svg", title) for name, title, *_ in pictures]


def _draw(file: Path, title: str, unit: str, lines: Lines, strikes: list[float], *, logarithmic: bool) -> None:
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "long run"  # the same data, the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    for at in strikes:
        axes.axvline(at / 60, **STRUCK)
    for name, points in sorted(lines.items()):
        axes.plot([at / 60 for at, _ in points], [value for _, value in points], linewidth=0.9, label=name)
    axes.set(title=f"{title} (grey: a fault strikes)", xlabel="minutes", ylabel=unit)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def _rates(samples: Sequence[Sample]) -> Lines:
    found: Lines = defaultdict(list)
    step = max(len(samples) // 200, 6)  # half a minute at least: single samples jump
    for one, other in zip(samples[::step], samples[step::step], strict=False):
        seconds = other.at - one.at
        found["asked for"].append((other.at, (other.asked - one.asked) / seconds))
        if one.finished is not None and other.finished is not None:
            found["ended"].append((other.at, max(other.finished - one.finished, 0) / seconds))
    return found


def _places(samples: Sequence[Sample]) -> Lines:
    found = _by_name(samples, "places")
    found["in the broker"] = [(sample.at, sample.messages) for sample in samples if sample.messages is not None]
    return found


def _by_name(samples: Sequence[Sample], part: str, unit: float = 1) -> Lines:
    names = {name for sample in samples for name in getattr(sample, part)}
    asked = [sample for sample in samples if sample.connections]  # Postgres answered
    return {name: [(sample.at, getattr(sample, part).get(name, 0) / unit) for sample in asked] for name in names}


def _memory(samples: Sequence[Sample]) -> Lines:
    return _of_processes(samples, "anonymous", MIB)


def _of_processes(samples: Sequence[Sample], part: str, unit: float) -> Lines:
    found: Lines = defaultdict(list)
    for sample in samples:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for one in sample.processes:
            by_kind[one.kind].append(getattr(one, part) / unit)
        for kind, values in by_kind.items():
            found[kind].append((sample.at, median(values)))
    return found


def _connections(samples: Sequence[Sample]) -> Lines:
    found = _by_name(samples, "connections")
    found["(to the broker)"] = [(sample.at, sample.clients) for sample in samples if sample.clients is not None]
    return found


def _tables(samples: Sequence[Sample]) -> Lines:
    found = _by_name(samples, "tables", MIB)
    largest = sorted(found, key=lambda name: -max(value for _, value in found[name]))[:8]
    return {name: found[name] for name in largest}


_OF_CHILDREN = (
    "Memory stays flat but for pool children. They grow by what Celery itself keeps of each task that raises, on Python 3.11 about",
    "180 KiB: 600 failing tasks of an application without the bridge grew one from 13 to 119 MiB, and `worker_max_memory_per_child`",
    "is Celery's answer to it. A child of a long run may grow by that for each of its runs that raised; more would be a sin.",
)


def page(report: Report, samples: Sequence[Sample], pictures: Sequence[tuple[str, str]], where: str) -> str:
    """The page of the documentation.

    Args:
        report: of the run.
        samples: taken meanwhile.
        pictures: file names and titles.
        where: folder of the pictures, as a link has it.
    """
    plan, counts = report.plan, report.counts
    came = Counter((blow.fault, blow.met) for blow in report.blows)
    lines = [
        "# The long run",
        "",
        f"{plan.seconds / 60:g} minutes of mixed load ({plan.rate:g} calls a second, about two jobs each) on {plan.broker}, with a fault",
        f"about every {plan.every:g} seconds, drawn from the seed {plan.seed}. Made by",
        f"`make chaos ARGS='--minutes {plan.seconds / 60:g} {plan.words} --page docs/long-run.md'`",
        f"with {SOFTWARE}; what is checked, and how, is told in [ARCHITECTURE.md](../ARCHITECTURE.md#the-laboratory).",
        "",
        f"**{len(report.sins)} sins.** {', '.join(f'{name} {count}' for name, count in counts.items())}.",
        "",
        *(f"- {sin.rule}: {sin.words}" for sin in report.sins),
        *([""] if report.sins else []),
        "| process | longest lives | anonymous memory, first and last quarter of a life | handles |",
        "|---|---|---|---|",
        *(_row(kind, those) for kind, those in sorted(judged(samples).items())),
        "",
        *_OF_CHILDREN,
        "",
    ]
    for name, title in pictures:
        lines += [f"![{title}]({where}/{name})", ""]
    lines += ["A strike misses where there is nothing to hit, or where nobody comes by the place in the code before it is mended.", ""]
    lines += ["| fault | struck | missed |", "|---|---|---|"]
    lines += [f"| `{name}` | {came[name, True]} | {came[name, False]} |" for name in sorted({name for name, _ in came})]
    return "\n".join([*lines, ""])


def _software() -> str:
    """What was run: the release, and the commit where this is a work tree of git."""
    with suppress(OSError):
        told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=HERE)
        if told.returncode == 0:
            return f"bridge {bridge.__version__} at commit {told.stdout.strip()}"
    return f"bridge {bridge.__version__}"


SOFTWARE = _software()  # before a run writes anything here


def _row(kind: str, those: list[Any]) -> str:
    minutes = ", ".join(f"{life.seconds / 60:.0f} min" for life in those)
    memory = ", ".join(f"{life.first_bytes / MIB:.1f} → {life.last_bytes / MIB:.1f} MiB" for life in those)
    handles = ", ".join(f"{life.first_handles:g} → {life.last_handles:g}" for life in those)
    return f"| {kind} | {minutes} | {memory} | {handles} |"
