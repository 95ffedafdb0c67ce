"""The steps of the tick: what time brings about, and what it recovers. Here too is the list of all steps that are no faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import rows as step
from model.bundle import BUNDLE_STEPS
from model.moves import (
    all_were_heard,
    claim,
    commit,
    end_run,
    excuse,
    expire,
    mark,
    note_found,
    note_missing,
    pop,
    publish,
    report,
    republish,
    start,
    stop_run,
    tell_death,
    unclaim,
    with_row,
    with_worker,
)  # fmt: skip
from model.rows import FLYING
from model.state import Worker, deliveries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.moves import Step
    from model.state import Bounds, State


def come_due(state: State, bounds: Bounds) -> Iterator[Step]:
    """A retry's pause is over."""
    del bounds
    for job, row in enumerate(state.rows):
        due = step.come_due(row)
        if due:
            yield ("tick", f"job {job} is due"), commit(state, with_row(state.rows, job, due), forced=False)


def unclaim_dead(state: State, bounds: Bounds) -> Iterator[Step]:
    """A claim's lease is over, and its drainer has died; or it is slow, which is a fault."""
    for job, row in enumerate(state.rows):
        back = step.unclaim(row, bounds.rules)
        held = any(not worker.lost and (job, row.token) in worker.report for worker in state.workers)
        alive = any(drainer.shipment == row.shipment and drainer.phase != "cut" for drainer in state.drainers)
        if back and not held and (not alive or state.faults):
            after = commit(state, with_row(state.rows, job, back), forced=False)
            label = ("a drainer is slow: unclaim_dead" if alive else "unclaim_dead", f"job {job}")
            yield label, after._replace(faults=state.faults - alive)


def declare_dead(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker has not reported for long."""
    del bounds
    for index, worker in enumerate(state.workers):
        if not worker.up and not worker.lost and grace_is_over(state, index):
            yield ("worker is lost", f"{index}"), unheard(state, index)


def grace_is_over(state: State, but: int) -> bool:
    """Whether all other living workers have reported, and looks have found what the broker has: `worker_lost` is longer than a grace."""
    if not all_were_heard(state):
        return False
    living = {index for index, worker in enumerate(state.workers) if worker.up and not worker.lost and index != but}
    there = deliveries(state.broker)
    missed = [(job, row) for job, row in enumerate(state.rows) if row.place == "published" and row.missing is not None]
    return all((job, row.token) not in there and not living & set(row.missing or ()) for job, row in missed)


def unheard(state: State, index: int) -> State:
    """A worker that has not reported for `worker_lost`: nobody waits for its reports."""
    rows = tuple(
        row._replace(missing=tuple(one for one in row.missing if one != index)) if row.place == "published" and row.missing else row
        for row in state.rows
    )
    worker = state.workers[index]
    old = tuple(bundle._replace(stale=bool(bundle.slice)) for bundle in worker.bundle)
    return with_worker(state, index, worker._replace(lost=True, bundle=old))._replace(rows=rows, older=state.older - {rows})


def note_unheld(state: State, bounds: Bounds) -> Iterator[Step]:
    """A living worker has not named a run of its own."""
    del bounds
    for job, row in enumerate(state.rows):
        if row.place == "running" and row.missing is None:
            worker = state.workers[row.worker]
            if worker.up and not worker.lost and (job, row.token) not in worker.report:
                missed = row._replace(missing=(row.worker,))
                yield ("note_unheld", f"job {job}"), commit(state, with_row(state.rows, job, missed), forced=False)


def sweep_reads(state: State, bounds: Bounds) -> Iterator[Step]:
    """The sweep reads which deliveries nobody has any more. Before it acts, others may."""
    if state.sweep is not None or not all_were_heard(state):
        return
    for job, row in enumerate(state.rows):
        if row.place == "running" and (row.missing == () or state.workers[row.worker].lost):
            lost = state.workers[row.worker].lost
            yield ("sweep reads", f"run of job {job}"), state._replace(sweep=(job, row.token, row.worker, lost))
        message = (job, row.token)
        named = any(not worker.lost and message in worker.report for worker in state.workers)
        if row.place == "published" and not (named and bounds.rules.sweep_asks_reports):
            for index, worker in enumerate(state.workers):
                if worker.lost and message in worker.report:
                    yield ("sweep reads", f"delivery of job {job}"), state._replace(sweep=(job, row.token, index, True))


def sweep_acts(state: State, bounds: Bounds) -> Iterator[Step]:
    """The sweep takes what it has read."""
    if state.sweep is None:
        return
    job, token, worker, lost = state.sweep
    before, after = state.rows[job], state._replace(sweep=None)
    row = step.lose(before, bounds.rules, token, worker=worker)
    if row is not None:
        after = commit(after, with_row(state.rows, job, row), forced=False)
        if lost:  # it may be heard again since
            after = excuse(after, job, of=lambda index, child: index == worker and child.token == token)
    yield ("sweep loses", f"job {job}"), after


def restart(state: State, bounds: Bounds) -> Iterator[Step]:
    """In the place of a worker that is dead, and of which the rows know no more, comes a new one."""
    del bounds
    for index, worker in enumerate(state.workers):
        if not worker.up and not worker.child and not worker.bundle and worker.lost:
            known = {(job, row.token) for job, row in enumerate(state.rows) if row.place in FLYING}
            named = any(rows[job].worker == index for rows in (state.rows, *state.older) for job in range(len(rows)))
            if not named and not known & set(worker.report):
                yield ("new worker", f"{index}"), with_worker(state, index, Worker())


STEPS = (
    claim, publish, mark, unclaim, note_missing, note_found, republish, pop, start, end_run, tell_death, stop_run, expire, report, come_due,
    unclaim_dead, declare_dead, note_unheld, sweep_reads, sweep_acts, restart, *BUNDLE_STEPS,
)  # fmt: skip
