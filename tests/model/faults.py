"""What may go wrong, each at the cost of a fault; and what people do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from model import rows as step
from model.bundle import BUNDLE_FAULTS, leave_bundle, without_child, write_kept
from model.moves import back_in_broker, commit, excuse, fresh_run, of_jobs, singles, with_drainer, with_each, with_row, with_worker, without
from model.state import IDLE, NOTHING, Death, Worker, deliveries
from model.tick import grace_is_over, unheard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.moves import Step
    from model.state import Bounds, State


def drainer_dies(state: State, bounds: Bounds) -> Iterator[Step]:
    """Wherever it is; another is there at once."""
    del bounds
    for index, drainer in enumerate(state.drainers):
        if drainer.phase not in {"idle", "cut"}:
            yield (f"a drainer dies: {drainer.phase}",), with_drainer(state, index, IDLE)


def broker_refuses(state: State, bounds: Bounds) -> Iterator[Step]:
    """A publish fails, and nobody knows whether the message has arrived."""
    del bounds
    for index, drainer in enumerate(state.drainers):
        if drainer.phase == "claimed":
            failed = with_drainer(state, index, drainer._replace(phase="refused"))
            yield ("publish fails, nothing arrived",), failed
            yield ("publish fails, all arrived",), back_in_broker(failed, drainer.messages)


def broker_forgets(state: State, bounds: Bounds) -> Iterator[Step]:
    """One message, or all."""
    del bounds
    for message in sorted(set(state.broker)):
        yield ("broker loses a message", of_jobs(message)), state._replace(broker=without(state.broker, message))
    if len(state.broker) > 1:
        yield ("broker loses all",), state._replace(broker=())


def broker_repeats(state: State, bounds: Bounds) -> Iterator[Step]:
    """A message that was sent is there again: an old snapshot, a redelivery."""
    sent = [(job, row.token) for job, row in enumerate(state.rows) if row.token > 0 and row.place in {"published", "running", "ready"}]
    for one in sent if bounds.repeats else ():
        yield ("broker repeats a message", of_jobs((one,))), back_in_broker(state, ((one,),))
    bundle = tuple((job, row.token if (job, row.token) in sent and not row.alone else 0) for job, row in enumerate(state.rows))
    if bounds.repeats and bounds.bundle and any(token for _, token in bundle):  # of what has ended since, too
        yield ("broker repeats a message", of_jobs(bundle)), back_in_broker(state, (bundle,))


def worker_drops(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker loses its connection to the broker: what it has not begun goes back. It has held each message for one report at least."""
    del bounds
    for index, worker in enumerate(state.workers):
        if worker.up and worker.hand and set(deliveries(worker.hand)) <= set(worker.report):
            dropped = with_worker(state, index, worker._replace(hand=()))
            put_back = dropped._replace(broker=tuple(sorted(state.broker + worker.hand)))
            yield ("worker drops what it holds", f"{index}"), back_in_broker(dropped, worker.hand) if worker.lost else put_back


def start_unanswered(state: State, bounds: Bounds) -> Iterator[Step]:
    """A start is written, its answer is lost, the second question finds the row running: the copy is refused."""
    for index, worker in enumerate(state.workers):
        for message in singles(worker):
            ((job, token),) = message
            row = state.rows[job]
            begun = step.start(row, bounds.rules, token, fresh_run(state, job), index)
            if begun:
                after = with_worker(state, index, worker._replace(hand=without(worker.hand, message)))
                forced = step.is_forced(row, bounds.rules)
                yield ("answer to a start is lost", f"of {index}"), commit(after, with_row(state.rows, job, begun), forced=forced)


def end_unanswered(state: State, bounds: Bounds) -> Iterator[Step]:
    """An end is written and its answer lost: the child will say it again."""
    for index, worker in enumerate(state.workers):
        for child in () if worker.bundle else worker.child:
            for name, ends in (("finish", step.finish), ("fail", step.fail)):
                row = ends(state.rows[child.job], bounds.rules, child.token, child.run)
                if row:
                    after = commit(state, with_row(state.rows, child.job, row), forced=True)
                    said = worker._replace(child=(child._replace(excused=True),))
                    yield (f"answer to a {name} is lost", f"of {index}"), with_worker(after, index, said)


def child_dies(state: State, bounds: Bounds) -> Iterator[Step]:
    """While it runs, or while it asks for its start."""
    del bounds
    for index, worker in enumerate(state.workers):
        if worker.child or worker.bundle:
            yield ("child dies", f"of {index}"), with_worker(state, index, without_child(worker))
        for message in sorted(set(worker.hand)) if worker.up else ():
            starts = tuple((job, token, 0) for job, token in message)
            dead = Death(left=starts) if len(message) > 1 else Death(at=starts)
            rest = worker._replace(hand=without(worker.hand, message), dying=(*worker.dying, dead))
            yield ("child dies before its start", f"of {index}"), with_worker(state, index, rest)


def worker_dies(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process dies; its child may outlive it, and what it held may return to the queue."""
    for index, worker in enumerate(state.workers if bounds.mortal else ()):
        if not worker.up:
            continue
        for child, bundle in {(worker.child, worker.bundle), ((), ())}:
            for back in {worker.hand, ()}:
                after = with_worker(state, index, worker._replace(up=False, hand=(), dying=(), child=child, bundle=bundle))
                label = ("worker dies", f"{index}", "orphan" if child or bundle else "", "messages return" if back else "")
                yield label, back_in_broker(after, back)


def worker_cut_off(state: State, bounds: Bounds) -> Iterator[Step]:
    """A living worker is not heard for so long that it is taken for dead."""
    for index, worker in enumerate(state.workers if bounds.mortal else ()):
        if worker.up and not worker.lost and (worker.report or worker.child or worker.bundle) and grace_is_over(state, index):
            yield ("worker is cut off", f"{index}"), unheard(state, index)


def postgres_crashes(state: State, bounds: Bounds) -> Iterator[Step]:
    """What was not on disk may be forgotten, from some commit on; sessions end; the last reports may be forgotten too.

    Of a grace counts only the time since Postgres was started.
    """
    living = tuple(index for index, worker in enumerate(state.workers) if worker.up and not worker.lost)
    cut = tuple(one._replace(phase="cut", shipment=0) if one.phase in {"claimed", "cut"} else IDLE for one in state.drainers)
    workers = tuple(worker._replace(heard=not worker.up) for worker in state.workers)
    silent = tuple(worker._replace(report=()) for worker in workers)
    for kept in (state.rows, *sorted(state.older, key=repr)):
        again = bounds.rules.republish_is_fair
        rows = tuple(
            row._replace(missing=living) if again and row.place == "published" and row.missing is not None else row for row in kept
        )
        for told in {workers, silent}:
            label = ("postgres crashes", "forgets" if kept != state.rows else "", "forgets reports" if told != workers else "")
            yield label, state._replace(rows=rows, older=NOTHING, drainers=cut, workers=told, sweep=None, crashes=state.crashes - 1)


FAULTS = (
    drainer_dies, broker_refuses, broker_forgets, broker_repeats, worker_drops, start_unanswered, end_unanswered, child_dies, worker_dies,
    worker_cut_off, *BUNDLE_FAULTS,
)  # fmt: skip


def cancel(state: State, bounds: Bounds) -> Iterator[Step]:
    """Somebody cancels a job."""
    del bounds
    for job, row in enumerate(state.rows):
        after = step.cancel(row)
        if after:
            ended = commit(state, with_row(state.rows, job, after), forced=True)
            yield ("cancel", f"job {job}"), excuse(ended, job) if row.place != "running" else ended


def leave(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker is told to stop: it gives back what it has not begun, and its messages with it. Its run goes on."""
    for index, worker in enumerate(state.workers):
        given = deliveries(worker.hand) if bounds.rules.release_spares_runs else worker.holds()
        if worker.up and worker.holds():
            rows = state.rows
            for job, token in given:
                rows = with_row(rows, job, step.release(rows[job], token))
            after = with_worker(commit(state, rows, forced=False), index, worker._replace(hand=()))
            yield ("release", f"by {index}"), after._replace(broker=tuple(sorted(state.broker + worker.hand)))


def stop(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker stops and breaks its runs off; another takes its place."""
    for index, worker in enumerate(state.workers):
        if worker.up and (worker.child or worker.bundle):
            before = write_kept(state, bounds, tuple(worker.runs()))
            rows = with_each(before.rows, range(bounds.jobs), partial(step.break_off, worker=index))
            for job, token in worker.holds():
                rows = with_row(rows, job, step.release(rows[job], token))
            after = with_worker(commit(before, rows, forced=False), index, Worker(report=worker.report))
            yield ("stop_worker", f"{index}"), after._replace(broker=tuple(sorted(state.broker + worker.hand)))


PEOPLE = (cancel, leave, stop, leave_bundle)
