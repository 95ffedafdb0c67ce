"""What a pool process does with a bundle: it starts a slice, runs one after another, and writes their successes together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import rows as step
from model.moves import commit, fresh_run, of_jobs, with_dead, with_row, with_worker, without
from model.state import GONE, Bundle, Child, Death

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.moves import Step
    from model.state import Bounds, Delivery, Start, State, Worker


def start_slice(state: State, bounds: Bounds) -> Iterator[Step]:
    """A child asks the fence about the next of its bundle: one, or several."""
    for index, rest, worker in _asking(state):
        for many in range(1, len(rest) + 1):
            wanted = tuple((job, token, fresh_run(state, job)) for job, token in rest[:many])
            yield ("start_many", f"by {index}", of_jobs(rest[:many])), _asked(state, bounds, index, worker, wanted, rest[many:])


def _asking(state: State) -> Iterator[tuple[int, tuple[Delivery, ...], Worker]]:
    """Children that are through with a slice, or have just got a bundle: what is to be started, and their worker without it."""
    for index, worker in enumerate(state.workers):
        if worker.up and not worker.child and not worker.bundle:
            for message in sorted(set(worker.hand)):
                if len(message) > 1:
                    yield index, message, worker._replace(hand=without(worker.hand, message))
        for bundle in worker.bundle:
            if bundle.rest and not bundle.slice and not _running(worker):
                yield index, bundle.rest, worker


def _running(worker: Worker) -> tuple[Child, ...]:
    return tuple(child for child in worker.child if not child.over)


def _asked(state: State, bounds: Bounds, index: int, worker: Worker, wanted: tuple[Start, ...], rest: tuple[Delivery, ...]) -> State:
    """The fence has answered: what may run, with what will be asked about later, is the child's bundle now."""
    rows, admitted, forced, unbegun = state.rows, [], False, set(state.unbegun)
    for job, token, run in wanted:
        begun = step.start(rows[job], bounds.rules, token, run, index, together=len(wanted) > 1)
        forced |= begun is None or step.is_forced(rows[job], bounds.rules)
        row = begun or step.start_again(rows[job], run)
        rows = with_row(rows, job, row)
        if begun and begun.together:
            unbegun.add((job, run))
        if (row and row.place == "running") or not bounds.rules.slice_skips_refused:
            admitted.append(Child(job, token, run))
    after = with_worker(state, index, _settled(worker._replace(bundle=(Bundle(tuple(admitted), rest),))))
    return commit(after._replace(unbegun=frozenset(unbegun)), rows, forced=forced)


def _settled(worker: Worker) -> Worker:
    """A bundle is over when nothing is left of it, and all is written."""
    return worker._replace(bundle=() if worker.bundle == (Bundle(),) and not worker.child else worker.bundle)


def begin(state: State, bounds: Bounds) -> Iterator[Step]:
    """A child begins the next run of its slice; where the last one took long, it asks the fence anew before."""
    for index, worker in enumerate(state.workers):
        for bundle in worker.bundle if not _running(worker) else ():
            for run in bundle.slice[:1]:
                if not (bundle.stale and bounds.rules.slice_is_asked_anew):
                    rest = Bundle(bundle.slice[1:], bundle.rest, bundle.stale and len(bundle.slice) > 1)
                    begun = worker._replace(child=(*worker.child, run), bundle=(rest,))
                    after = with_worker(state, index, begun)
                    yield ("begin", f"by {index}", f"job {run.job}"), after._replace(unbegun=state.unbegun - {(run.job, run.run)})
                named = tuple((one.job, one.token, fresh_run(state, one.job) if one.run == GONE else one.run) for one in bundle.slice)
                yield ("start_many", f"by {index}", "asked anew"), _asked(state, bounds, index, worker, named, bundle.rest)


def come_to_end(state: State, bounds: Bounds) -> Iterator[Step]:
    """A run returns, and is kept, or fails, which is written at once."""
    for index, worker in enumerate(state.workers):
        for child in _running(worker) if worker.bundle else ():
            others = without_run(worker, child)
            yield (
                ("return", f"by {index}", f"of job {child.job}"),
                with_worker(state, index, others._replace(child=tuple(sorted((*others.child, child._replace(over=True)))))),
            )
            row = step.fail(state.rows[child.job], bounds.rules, child.token, child.run)
            after = commit(state, with_row(state.rows, child.job, row), forced=True) if row else state
            yield ("fail", f"by {index}", f"of job {child.job}"), with_worker(after, index, _settled(others))


def without_run(worker: Worker, child: Child) -> Worker:
    """The worker without one of its runs."""
    return worker._replace(child=tuple(one for one in worker.child if one != child))


def finish_many(state: State, bounds: Bounds) -> Iterator[Step]:
    """What a child has kept is written: by itself, or by the main process when it is dead."""
    for index, worker in enumerate(state.workers):
        if any(child.over for child in worker.child):
            rest = _settled(worker._replace(child=_running(worker)))
            yield ("finish_many", f"by {index}"), with_worker(write_kept(state, bounds, worker.child), index, rest)
        for dead in worker.dying if worker.up else ():
            if dead.ended:
                after = with_dead(state, index, dead, dead._replace(ended=()))
                yield ("finish_many", f"by {index}", "of the dead"), write_kept(after, bounds, dead.ended)


def write_kept(state: State, bounds: Bounds, runs: tuple[Child, ...]) -> State:
    """The successes that are kept, of these runs, are written."""
    kept, rows = [child for child in runs if child.over], state.rows
    for child in kept:
        rows = with_row(rows, child.job, step.finish(rows[child.job], bounds.rules, child.token, child.run))
    return commit(state, rows, forced=True) if kept else state


def unbundle(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process gives back what a process has left, but for what that had ended."""
    for index, worker in enumerate(state.workers):
        for dead in worker.dying if worker.up else ():
            if dead.left and not dead.at:
                ended = {child.job for child in dead.ended} if bounds.rules.unbundle_spares_ends else set()
                rows = state.rows
                for job, token, run in (one for one in dead.left if one[0] not in ended):
                    rows = with_row(rows, job, step.unbundle(rows[job], bounds.rules, token, run, alone=dead.alone))
                yield ("unbundle", f"by {index}"), with_dead(commit(state, rows, forced=True), index, dead, dead._replace(left=()))


def without_child(worker: Worker) -> Worker:
    """The worker when its child is dead: what that was at, had kept and had left is to be told."""
    if not worker.up:
        return worker._replace(child=(), bundle=())
    at = tuple((child.job, child.token, child.run) for child in _running(worker))
    kept = tuple(child for child in worker.child if child.over)
    left = (*((child.job, child.token, child.run) for child in kept), *(one for bundle in worker.bundle for one in bundle.left()))
    return worker._replace(child=(), bundle=(), dying=(*worker.dying, Death(at, kept, left)))


def stop_bundle(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process stops a run that somebody has cancelled: the process of its bundle ends with it."""
    del bounds
    for index, worker in enumerate(state.workers):
        for child in _running(worker) if worker.up and worker.bundle else ():
            if step.terminate(state.rows[child.job], child.token, index):
                yield ("terminate", f"by {index}", f"of job {child.job}"), with_worker(state, index, without_child(worker))


BUNDLE_STEPS = (start_slice, begin, come_to_end, finish_many, unbundle, stop_bundle)


def slice_unanswered(state: State, bounds: Bounds) -> Iterator[Step]:
    """A slice is started and its answer lost: all of it is left, which the main process can tell, or not."""
    for index, rest, worker in _asking(state):
        for many in range(1, len(rest) + 1):
            wanted = tuple((job, token, fresh_run(state, job)) for job, token in rest[:many])
            after = _asked(state, bounds, index, worker, wanted, rest[many:])
            yield ("answer to a slice is lost", f"of {index}"), _leaves(after, index)
            silent = _settled(after.workers[index]._replace(bundle=(Bundle(),)))
            yield ("answer to a slice is lost, and unbundle fails", f"of {index}"), with_worker(after, index, silent)


def _leaves(state: State, index: int) -> State:
    """A child gives the rest of its bundle to its main process, to be given back; it may travel with others."""
    worker = state.workers[index]
    left = tuple(one for bundle in worker.bundle for one in bundle.left())
    told = (*worker.dying, Death(left=left, alone=False)) if left else worker.dying
    return with_worker(state, index, _settled(worker._replace(bundle=(Bundle(),), dying=told)))


def finish_unanswered(state: State, bounds: Bounds) -> Iterator[Step]:
    """Successes are written and the answer lost: they are sent again."""
    for index, worker in enumerate(state.workers):
        if any(child.over for child in worker.child):
            said = worker._replace(child=tuple(child._replace(excused=child.excused or child.over) for child in worker.child))
            yield ("answer to a finish_many is lost", f"of {index}"), with_worker(write_kept(state, bounds, worker.child), index, said)


def unbundle_fails(state: State, bounds: Bounds) -> Iterator[Step]:
    """Postgres is away for the main process: what is left is the sweep's."""
    del bounds
    for index, worker in enumerate(state.workers):
        for dead in worker.dying if worker.up else ():
            if dead.left and not dead.at:
                yield ("unbundle fails", f"of {index}"), with_dead(state, index, dead, dead._replace(left=()))


BUNDLE_FAULTS = (slice_unanswered, finish_unanswered, unbundle_fails)


def leave_bundle(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker is told to stop: between two jobs, its child leaves the rest of its bundle."""
    del bounds
    for index, worker in enumerate(state.workers):
        if worker.up and not _running(worker) and any(bundle.left() for bundle in worker.bundle):
            yield ("leave", f"{index}"), _leaves(state, index)
