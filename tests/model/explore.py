"""Goes through every state that can be reached, breadth first, so that a counterexample is as short as there is one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.faults import FAULTS, PEOPLE, postgres_crashes
from model.promise import broken_state, broken_step
from model.rows import FINAL
from model.state import canonical, is_apart
from model.tick import STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.moves import Label
    from model.state import Bounds, State


@dataclass
class Explored:
    """What there is to reach, or why the promise does not hold."""

    bounds: Bounds
    states: dict[State, tuple[State, Label] | None] = field(default_factory=dict)
    calm: dict[State, list[tuple[str, State]]] = field(default_factory=dict)  # the steps without faults
    steps: int = 0
    names: set[str] = field(default_factory=set)
    broken: str | None = None
    trace: list[str] = field(default_factory=list)


def explore(bounds: Bounds, *, most: int = 10_000_000) -> Explored:
    """All states within the bounds; ends at the first that breaks the promise, with the way that leads there."""
    keep_void = not bounds.rules.know_the_dead()
    found = Explored(bounds)
    first = canonical(bounds.initial(), keep_void=keep_void)
    found.states[first] = None
    waiting = deque([first])
    while waiting and len(found.states) < most:
        state = waiting.popleft()
        calm = found.calm[state] = []
        if state != first and not state.older and not bounds.apart and is_apart(state):
            continue
        for label, raw, is_fault in next_steps(state, bounds):
            found.steps += 1
            found.names.add(label[0])
            said = broken_step(state, label, raw) or broken_state(raw, bounds)
            after = canonical(raw, keep_void=keep_void)
            if after not in found.states:
                found.states[after] = (state, label)
                waiting.append(after)
            if said:
                found.broken = said
                found.trace = [*_way(found, state), _line(label, raw), said]
                return found
            if not is_fault and after != state:
                calm.append((" ".join(label), after))
    return found


def next_steps(state: State, bounds: Bounds) -> Iterator[tuple[Label, State, bool]]:
    """Each step that may come next, and whether it costs a fault, a crash, or something that people do."""
    for moves, purse in ((STEPS, ""), (FAULTS, "faults"), ((postgres_crashes,), "crashes"), (PEOPLE, "people")):
        left = getattr(state, purse) if purse else 0
        for move in moves if left or not purse else ():
            for label, after in move(state, bounds):
                yield label, after._replace(**{purse: left - 1}) if purse else after, bool(purse) or after.faults != state.faults


def has_ended(state: State) -> bool:
    """Whether every job has."""
    return all(row.place in FINAL for row in state.rows)


def stuck(found: Explored) -> list[State]:
    """States from which no end can be reached without a further fault."""
    backwards: dict[State, list[State]] = {}
    for state, steps in found.calm.items():
        for _, after in steps:
            backwards.setdefault(after, []).append(state)
    ends = [state for state in found.calm if has_ended(state) or (not found.bounds.apart and is_apart(state))]
    reached = set(ends)
    while ends:
        for before in backwards.get(ends.pop(), ()):
            if before not in reached:
                reached.add(before)
                ends.append(before)
    return [state for state in found.calm if state not in reached]


def _way(found: Explored, state: State) -> list[str]:
    lines = []
    at: State | None = state
    while at is not None:
        came = found.states[at]
        if came:
            lines.append(_line(came[1], at))
        at = came and came[0]
    return lines[::-1]


def way_to(found: Explored, state: State) -> list[str]:
    """The steps that lead to a state."""
    return _way(found, state)


def _line(label: Label, state: State) -> str:
    """One step, and how things stand after it. Workers and drainers are told apart by what they do: their order may change."""
    rows = "; ".join(_row(row) for row in state.rows)
    words = [" ".join(filter(None, label)).ljust(44), rows]
    if state.broker:
        words.append(f"broker {list(state.broker)}")
    words += [f"drainer {drainer.phase}{list(drainer.jobs)}" for drainer in state.drainers if drainer.phase != "idle"]
    for index, one in enumerate(state.workers):
        told = [f"holds {list(one.hand)}" if one.hand else "", "lost" if one.lost else "", "" if one.up else "dead"]
        told += [f"{'keeps' if run.over else 'runs'} {run[:4]}" for run in one.child]
        told += [f"has {'long ' if bundle.stale else ''}{list(bundle.left())} of a bundle" for bundle in one.bundle]
        told += [f"must tell {list(map(tuple, one.dying))}" if one.dying else ""]
        if any(told):
            words.append(f"worker {index} {' '.join(filter(None, told))}")
    return " | ".join(words)


def _row(row: object) -> str:
    default = type(row)()
    shown = [f"{name}={value}" for name, value in row._asdict().items() if value != default._asdict()[name] and name != "place"]  # type: ignore[attr-defined]
    return " ".join([row.place, *shown])  # type: ignore[attr-defined]
