"""Everything that there is at a moment: rows, what a crash may bring back, messages, drainers, workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from model.rows import PRODUCT, Row, Rules

Message = tuple[int, int]  # job, token
GONE = -1  # a run that no row knows
NOTHING: frozenset[tuple[Row, ...]] = frozenset()


class Child(NamedTuple):
    """A run in a pool process; excused when its worker was rightly or wrongly taken for dead, or people ended the job."""

    job: int
    token: int
    run: int
    excused: bool = False


class Worker(NamedTuple):
    """A worker's processes, and what the rows say of it (`lost`, `heard`, `report`)."""

    up: bool = True
    lost: bool = False
    heard: bool = True  # since Postgres was started
    report: tuple[Message, ...] = ()
    hand: tuple[Message, ...] = ()  # not begun
    child: tuple[Child, ...] = ()  # none or one
    dying: tuple[tuple[int, int, int], ...] = ()  # job, token, run (0: not begun) of a child whose death the main process has to tell

    def holds(self) -> tuple[Message, ...]:
        """What it would report now."""
        return tuple(sorted({*self.hand, *((c.job, c.token) for c in self.child), *((job, token) for job, token, _ in self.dying)}))


class Drainer(NamedTuple):
    """What it has in memory: one shipment at most. `cut` is one whose connection to Postgres a crash has ended."""

    phase: str = "idle"
    shipment: int = 0
    jobs: tuple[Message, ...] = ()


IDLE = Drainer()


class State(NamedTuple):
    """One state; `older` are states of the rows that a crash of Postgres may bring back, `left` the faults that may still come."""

    rows: tuple[Row, ...]
    older: frozenset[tuple[Row, ...]]
    broker: tuple[Message, ...]
    drainers: tuple[Drainer, ...]
    workers: tuple[Worker, ...]
    sweep: tuple[int, int, int, bool] | None  # job, token, worker, whether it is lost: what the sweep has read and not acted upon yet
    faults: int
    crashes: int
    people: int


@dataclass(frozen=True)
class Bounds:
    """How much of everything there is."""

    jobs: int = 1
    drainers: int = 2
    workers: int = 2
    faults: int = 2  # of any kind but crashes of Postgres
    crashes: int = 0
    people: int = 0  # cancels, stops of workers
    hand: int = 2  # messages that a worker takes before it has begun them
    expires: bool = False
    repeats: bool = True  # the broker may bring a message back
    rules: Rules = PRODUCT

    def initial(self) -> State:
        """All jobs have just been enqueued."""
        drainers, workers = (IDLE,) * self.drainers, (Worker(),) * self.workers
        return State((Row(),) * self.jobs, NOTHING, (), drainers, workers, None, self.faults, self.crashes, self.people)


def canonical(state: State, *, keep_void: bool) -> State:
    """The same state under its shortest name: dead copies gone (they can do nothing), equal drainers and workers in one order."""
    live = {(job, abs(row.token)) for rows in (state.rows, *state.older) for job, row in enumerate(rows) if row.token}
    state = _without_void(state, live, keep_void=keep_void)
    if len(state.drainers) > 1:
        state = state._replace(drainers=tuple(sorted(state.drainers)))
    if len(state.workers) == 2:
        first, second = state.workers
        if first > second or (first == second and _names(state, 1) and not _names(state, 0)):
            state = _swapped(state)
    return state


def _names(state: State, worker: int) -> bool:
    return any(row.worker == worker for row in state.rows)


def _without_void(state: State, live: set[Message], *, keep_void: bool) -> State:
    """Tokens that no row can have again become 0; messages with such a token go, where nothing could mistake them for others."""

    def void(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if all(message in live for message in messages):
            return messages
        changed = (message if message in live else (message[0], 0) for message in messages)
        return tuple(sorted(message for message in changed if keep_void or message[1]))

    runs = {(job, row.run) for rows in (state.rows, *state.older) for job, row in enumerate(rows)}

    def renamed(worker: Worker) -> Worker:
        up, lost, heard, report, hand, child, dying = worker
        if not (report or hand or child or dying):
            return worker
        if not all(message in live for message in report):
            report = tuple(message for message in report if message in live)
        if child:
            child = (_named(child[0], live, runs),)
        if dying:
            dying = tuple((job, token, run if (job, run) in runs else GONE) for job, token, run in dying if (job, token) in live)
        return Worker(up, lost, heard, report, void(hand), child, dying)

    workers = tuple(map(renamed, state.workers))
    drainers = tuple(
        drainer if drainer.phase == "idle" or keep_void or any(message in live for message in drainer.jobs) else IDLE
        for drainer in state.drainers
    )
    rows, older, broker, _, _, *rest = state
    return State(rows, older, void(broker), drainers, workers, *rest)


def _named(child: Child, live: set[Message], runs: set[Message]) -> Child:
    job, token, run, excused = child
    return Child(job, token if (job, token) in live else 0, run if (job, run) in runs else GONE, excused)


def _swapped(state: State) -> State:
    def other(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(
            row if row.worker < 0 and not row.missing else row._replace(
                worker=row.worker if row.worker < 0 else 1 - row.worker,
                missing=row.missing and tuple(sorted(1 - worker for worker in row.missing)),
            )
            for row in rows
        )  # fmt: skip

    sweep = state.sweep and (*state.sweep[:2], 1 - state.sweep[2], state.sweep[3])
    return state._replace(rows=other(state.rows), older=frozenset(map(other, state.older)), workers=state.workers[::-1], sweep=sweep)
