"""Everything that there is at a moment: rows, what a crash may bring back, messages, drainers, workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model.rows import PRODUCT, Row, Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Delivery = tuple[int, int]  # job, token
Message = tuple[Delivery, ...]  # one delivery, or those of a bundle
Start = tuple[int, int, int]  # job, token, run; 0: not started
GONE = -1  # a run that no row knows
NOTHING: frozenset[tuple[Row, ...]] = frozenset()


def deliveries(messages: Iterable[Message]) -> tuple[Delivery, ...]:
    """What is in messages."""
    return tuple(delivery for message in messages for delivery in message)


class Child(NamedTuple):
    """A run in a pool process; excused when its worker was rightly or wrongly taken for dead, or people ended the job.

    `over` is one of a bundle whose task has returned, and whose success is kept, to be written together with others.
    """

    job: int
    token: int
    run: int
    excused: bool = False
    over: bool = False


class Bundle(NamedTuple):
    """What a pool process has of a bundle: runs of its slice that have not begun, deliveries that it has not asked the fence about."""

    slice: tuple[Child, ...] = ()
    rest: tuple[Delivery, ...] = ()
    stale: bool = False  # the fence was asked about the slice too long ago

    def left(self) -> tuple[Start, ...]:
        """All that has not begun."""
        return (*((run.job, run.token, run.run) for run in self.slice), *((job, token, 0) for job, token in self.rest))


class Death(NamedTuple):
    """What a main process has to tell of a process that is dead or has left something, in this order."""

    at: tuple[Start, ...] = ()  # the delivery that it was at: none or one
    ended: tuple[Child, ...] = ()  # runs whose success it had kept
    left: tuple[Start, ...] = ()  # of a bundle: all others
    alone: bool = True


class Worker(NamedTuple):
    """A worker's processes, and what the rows say of it (`lost`, `heard`, `report`)."""

    up: bool = True
    lost: bool = False
    heard: bool = True  # since Postgres was started
    report: tuple[Delivery, ...] = ()
    hand: tuple[Message, ...] = ()  # not begun
    child: tuple[Child, ...] = ()  # one that runs at most; of a bundle, those that are over as well
    dying: tuple[Death, ...] = ()
    bundle: tuple[Bundle, ...] = ()  # none or one

    def not_begun(self) -> tuple[Delivery, ...]:
        """What it is still to begin."""
        return (*deliveries(self.hand), *(start[:2] for bundle in self.bundle for start in bundle.left()))

    def holds(self) -> tuple[Delivery, ...]:
        """What it would report now."""
        dead = (start[:2] for dead in self.dying for start in (*dead.at, *dead.left))
        return tuple(sorted({*self.not_begun(), *dead, *((child.job, child.token) for child in self.runs())}))

    def runs(self) -> Iterator[Child]:
        """Runs that have begun, and whose outcome is not written."""
        yield from self.child
        for dead in self.dying:
            yield from dead.ended

    def known_runs(self, job: int) -> set[int]:
        """Numbers of a job's runs that it knows of, whether or not they have begun."""
        starts = [start for bundle in self.bundle for start in bundle.left()]
        starts += [start for dead in self.dying for start in (*dead.at, *dead.left)]
        return {child.run for child in self.runs() if child.job == job} | {run for one, _, run in starts if one == job}


class Drainer(NamedTuple):
    """What it has in memory: one shipment at most. `cut` is one whose connection to Postgres a crash has ended."""

    phase: str = "idle"
    shipment: int = 0
    messages: tuple[Message, ...] = ()

    @property
    def jobs(self) -> tuple[Delivery, ...]:
        """What is in them."""
        return deliveries(self.messages)


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
    unbegun: frozenset[tuple[int, int]] = frozenset()  # job, run: started with others of a slice, and not begun


def is_apart(state: State) -> bool:
    """Whether nothing is in a bundle any more, nor has to be told of one, and no two jobs are about to come into one."""
    messages = [*state.broker, *(message for drainer in state.drainers for message in drainer.messages)]
    messages += [message for worker in state.workers for message in worker.hand]
    return (
        all(len(message) == 1 for message in messages)
        and not any(worker.dying or any(one.left() for one in worker.bundle) for worker in state.workers)
        and not any(child.over or not child.excused for worker in state.workers if worker.bundle for child in worker.child)
        and not any(row.together for row in state.rows)
        and sum(row.place in {"ready", "claimed"} and row.token > 0 and not row.alone for row in state.rows) < 2
    )


@dataclass(frozen=True)
class Bounds:
    """How much of everything there is."""

    jobs: int = 1
    bundle: bool = False  # jobs that are claimed together travel in one message
    apart: bool = True  # go on with jobs that travel alone because their bundle has come to its end
    drainers: int = 2
    workers: int = 2
    faults: int = 2  # of any kind but crashes of Postgres
    crashes: int = 0
    people: int = 0  # cancels, stops of workers
    hand: int = 2  # messages that a worker takes before it has begun them
    expires: bool = False
    repeats: bool = True  # the broker may bring a message back
    mortal: bool = True  # a worker may die, or be taken for dead
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


def _without_void(state: State, live: set[Delivery], *, keep_void: bool) -> State:
    """Tokens that no row can have again become 0; messages with such tokens alone go, where nothing could mistake them for others."""

    def void(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if all(delivery in live for message in messages for delivery in message):
            return messages
        changed = (tuple(one if one in live else (one[0], 0) for one in message) for message in messages)
        return tuple(sorted(message for message in changed if keep_void or any(token for _, token in message)))

    runs = {(job, row.run) for rows in (state.rows, *state.older) for job, row in enumerate(rows)}

    def renamed(worker: Worker) -> Worker:
        up, lost, heard, report, hand, child, dying, bundle = worker
        if not (report or hand or child or dying or bundle):
            return worker
        if not all(delivery in live for delivery in report):
            report = tuple(delivery for delivery in report if delivery in live)
        child = tuple(_named(one, live, runs) for one in child)
        dead = (_dead(one, live, runs) for one in dying)
        dying = tuple(one for one in dead if one.at or one.ended or one.left)
        if bundle:
            child, bundle = _without_dead(child, _in_bundle(bundle[0], live, runs), keep_void=keep_void)
        return Worker(up, lost, heard, report, void(hand), child, dying, bundle)

    workers = tuple(map(renamed, state.workers))
    drainers = tuple(
        drainer if drainer.phase == "idle" or keep_void or any(delivery in live for delivery in drainer.jobs) else IDLE
        for drainer in state.drainers
    )
    return state._replace(broker=void(state.broker), drainers=drainers, workers=workers, unbegun=state.unbegun & runs)


def _named(child: Child, live: set[Delivery], runs: set[tuple[int, int]]) -> Child:
    job, token, run, excused, over = child
    return Child(job, token if (job, token) in live else 0, run if (job, run) in runs else GONE, excused, over)


def _start(start: Start, live: set[Delivery], runs: set[tuple[int, int]]) -> Start:
    job, token, run = start
    return job, token if (job, token) in live else 0, run if (job, run) in runs else GONE


def _dead(dead: Death, live: set[Delivery], runs: set[tuple[int, int]]) -> Death:
    at, left = (tuple(_start(one, live, runs) for one in some if one[:2] in live) for some in (dead.at, dead.left))
    return Death(at, tuple(_named(one, live, runs) for one in dead.ended if (one.job, one.token) in live), left, dead.alone)


def _in_bundle(bundle: Bundle, live: set[Delivery], runs: set[tuple[int, int]]) -> Bundle:
    rest = tuple(one if one in live else (one[0], 0) for one in bundle.rest)
    return Bundle(tuple(_named(one, live, runs) for one in bundle.slice), rest, bundle.stale)


def _without_dead(child: tuple[Child, ...], bundle: Bundle, *, keep_void: bool) -> tuple[tuple[Child, ...], tuple[Bundle, ...]]:
    """What a process has of a bundle, but for what the fence will refuse: an old slice's dead runs, and the rest when it is dead."""
    if not keep_void:
        child = tuple(run for run in child if run.token or not (run.over and run.excused))
        slice_ = tuple(run for run in bundle.slice if run.token or not bundle.stale)
        rest = bundle.rest if any(token for _, token in bundle.rest) else ()
        bundle = Bundle(slice_, rest, bundle.stale and bool(slice_))
    return child, (bundle,) if child or bundle != Bundle() else ()


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
