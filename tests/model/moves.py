"""What may happen next: every function yields the steps of one kind, with a label, from a state. Crashes and the like are in `faults`."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from model import rows as step
from model.state import IDLE, NOTHING, Child, Drainer, State, deliveries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from model.rows import Row
    from model.state import Bounds, Death, Delivery, Message, Worker

Label = tuple[str, ...]
Step = tuple[Label, State]


# Shared by many


def commit(state: State, rows: tuple[Row, ...], *, forced: bool) -> State:
    """Change the rows. What is not forced to disk may be forgotten by a crash, together with what came after it."""
    older = NOTHING if forced or not state.crashes else (state.older | {state.rows}) - {rows}
    return state._replace(rows=rows, older=older)


def with_row(rows: tuple[Row, ...], job: int, row: Row | None) -> tuple[Row, ...]:
    """The rows with another one for this job; as they are where there is none."""
    return (*rows[:job], row, *rows[job + 1 :]) if row else rows


def with_each(rows: tuple[Row, ...], jobs: Iterable[int], change: Callable[[Row], Row | None]) -> tuple[Row, ...]:
    """The rows with those of several jobs changed, as far as they let themselves be changed."""
    for job in jobs:
        rows = with_row(rows, job, change(rows[job]))
    return rows


def with_worker(state: State, index: int, worker: Worker) -> State:
    """The state with this worker changed."""
    return state._replace(workers=(*state.workers[:index], worker, *state.workers[index + 1 :]))


def with_drainer(state: State, index: int, drainer: Drainer) -> State:
    """The state with this drainer changed."""
    return state._replace(drainers=(*state.drainers[:index], drainer, *state.drainers[index + 1 :]))


def without(messages: tuple[Message, ...], one: Message) -> tuple[Message, ...]:
    """The messages but one of this kind."""
    place = messages.index(one)
    return messages[:place] + messages[place + 1 :]


def excuse(state: State, job: int, *, of: Callable[[int, Child], bool] = lambda _index, _child: True) -> State:
    """From now on nobody expects anything of these runs of a job."""

    def excused(index: int, runs: tuple[Child, ...]) -> tuple[Child, ...]:
        return tuple(child._replace(excused=True) if child.job == job and of(index, child) else child for child in runs)

    workers = tuple(
        worker._replace(
            child=excused(index, worker.child),
            dying=tuple(dead._replace(ended=excused(index, dead.ended)) for dead in worker.dying),
            bundle=tuple(one if one.stale else one._replace(slice=excused(index, one.slice)) for one in worker.bundle),
        )
        for index, worker in enumerate(state.workers)
    )
    return state._replace(workers=workers)


def back_in_broker(state: State, messages: tuple[Message, ...]) -> State:
    """Messages are in the broker again. If one was missed, a look finds it: it does not come back in the last moment of a grace."""
    there = deliveries(messages)
    rows = tuple(
        row._replace(missing=None) if row.place == "published" and (job, row.token) in there else row for job, row in enumerate(state.rows)
    )
    return state._replace(rows=rows, older=state.older - {rows}, broker=tuple(sorted(state.broker + messages)))


def _unused(used: Iterable[int]) -> int:
    taken = set(used)
    return next(number for number in count(1) if number not in taken)


def of_jobs(message: Message) -> str:
    """What a message has, in words."""
    return "of job " + " and ".join(str(job) for job, _ in message)


def fresh_token(state: State, job: int) -> int:
    """A token that is nowhere."""
    known = {abs(rows[job].token) for rows in (state.rows, *state.older)} | {token for one, token in deliveries(state.broker) if one == job}
    for worker in state.workers:
        known |= {token for one, token in (*worker.report, *worker.holds()) if one == job}
    for drainer in state.drainers:
        known |= {token for one, token in drainer.jobs if one == job}
    return _unused(known)


def fresh_run(state: State, job: int) -> int:
    """A run that is nowhere."""
    known = {rows[job].run for rows in (state.rows, *state.older)}
    for worker in state.workers:
        known |= worker.known_runs(job)
    return _unused(known)


def fresh_shipment(state: State) -> int:
    """A shipment that is nowhere."""
    known = {row.shipment for rows in (state.rows, *state.older) for row in rows}
    return _unused(known | {drainer.shipment for drainer in state.drainers})


def all_were_heard(state: State) -> bool:
    """Whether every living worker has reported since Postgres was started: nobody is taken for dead before."""
    return all(worker.heard or worker.lost or not worker.up for worker in state.workers)


# Drainers


def claim(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer claims one job, or all that are ready; asynchronously."""
    ready = _ready(state, bounds)
    shipments = ([] if bounds.bundle and len(ready) > 1 else [[job] for job in ready]) + ([ready] if len(ready) > 1 else [])
    for index in _idle(state):
        for jobs in shipments:
            shipment, rows, taken = fresh_shipment(state), state.rows, []
            for job in jobs:
                row = step.claim(rows[job], bounds.rules, fresh_token(state, job), shipment)
                if row:
                    rows = with_row(rows, job, row)
                    taken.append((job, row.token))
            after = with_drainer(state, index, Drainer("claimed", shipment, _packed(taken, rows, bounds)))
            yield ("claim", f"jobs {jobs}"), commit(after, rows, forced=False)


def _ready(state: State, bounds: Bounds) -> list[int]:
    """What may be claimed; without `apart` no job by itself, but one of which a copy may be in a bundle."""
    ready = [job for job, row in enumerate(state.rows) if row.place == "ready"]
    if not bounds.apart:
        ready = [job for job in ready if not state.rows[job].alone]
        ready = ready if len(ready) > 1 else [job for job in ready if state.rows[job].token]
    return ready


def _packed(taken: list[Delivery], rows: tuple[Row, ...], bounds: Bounds) -> tuple[Message, ...]:
    """The messages of a shipment: a bundle, and one of each job that travels alone."""
    together = tuple(one for one in taken if bounds.bundle and not rows[one[0]].alone)
    singles = tuple((one,) for one in taken if len(together) < 2 or one not in together)
    return (together, *singles) if len(together) > 1 else singles


def _idle(state: State) -> list[int]:
    """One idle drainer: all are alike."""
    return [index for index, drainer in enumerate(state.drainers) if drainer.phase == "idle"][:1]


def publish(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer sends what it has claimed, and the broker confirms; one that a crash of Postgres has cut off cannot mark it."""
    del bounds
    for index, drainer in enumerate(state.drainers):
        if drainer.phase in {"claimed", "cut"}:
            after = with_drainer(state, index, drainer._replace(phase="sent") if drainer.phase == "claimed" else IDLE)
            yield ("publish",), back_in_broker(after, drainer.messages)
        if drainer.phase == "cut":
            yield ("give up",), with_drainer(state, index, IDLE)


def mark(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer marks what the broker has confirmed."""
    for index, drainer in enumerate(state.drainers):
        if drainer.phase == "sent":
            mark_one = partial(step.mark_published, rules=bounds.rules, shipment=drainer.shipment)
            rows = with_each(state.rows, (job for job, _ in drainer.jobs), mark_one)
            after = with_drainer(state, index, IDLE)
            yield ("mark_published",), commit(after, rows, forced=bounds.rules.mark_is_forced)


def unclaim(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer puts back what it could not send."""
    for index, drainer in enumerate(state.drainers):
        if drainer.phase == "refused":
            put_back = partial(step.unclaim, rules=bounds.rules, shipment=drainer.shipment)
            rows = with_each(state.rows, (job for job, _ in drainer.jobs), put_back)
            yield ("unclaim",), commit(with_drainer(state, index, IDLE), rows, forced=False)


def note_missing(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer looks: the broker does not have a message, and no living worker has reported it. Each has until its next report."""
    for job, row in enumerate(state.rows):
        if row.place == "published" and row.missing is None and _seems_gone(state, bounds, job):
            living = tuple(index for index, worker in enumerate(state.workers) if worker.up and not worker.lost)
            missed = row._replace(missing=living if bounds.rules.republish_waits else ())
            yield ("mark_missing", f"job {job}"), commit(state, with_row(state.rows, job, missed), forced=False)


def note_found(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer looks again, and the message is there."""
    del bounds
    for job, row in enumerate(state.rows):
        if row.place == "published" and row.missing is not None and (job, row.token) in deliveries(state.broker):
            yield ("mark_found", f"job {job}"), commit(state, with_row(state.rows, job, row._replace(missing=None)), forced=False)


def _seems_gone(state: State, bounds: Bounds, job: int) -> bool:
    """The evidence of one look."""
    message, rules = (job, state.rows[job].token), bounds.rules
    named = any(not worker.lost and message in worker.report for worker in state.workers)
    return not (rules.republish_asks_reports and named) and not (rules.republish_asks_broker and message in deliveries(state.broker))


def republish(state: State, bounds: Bounds) -> Iterator[Step]:
    """A drainer claims again what is still missing after the grace."""
    if bounds.rules.republish_is_fair and not all_were_heard(state):
        return
    for index in _idle(state):
        for job, row in enumerate(state.rows):
            shipment = fresh_shipment(state)
            taken = step.republish(row, bounds.rules, shipment)
            if taken and _seems_gone(state, bounds, job):
                after = with_drainer(state, index, Drainer("claimed", shipment, (((job, row.token),),)))
                after = commit(after, with_row(state.rows, job, taken), forced=bounds.rules.republish_is_forced)
                yield ("republish", f"job {job}"), excuse(after, job, of=lambda i, _: state.workers[i].lost)


# Workers


def pop(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker takes a message."""
    for index, worker in enumerate(state.workers):
        if worker.up and len(worker.hand) < bounds.hand:
            for message in sorted(set(state.broker)):
                after = with_worker(state, index, worker._replace(hand=tuple(sorted((*worker.hand, message)))))
                yield ("pop", f"by {index}", of_jobs(message)), after._replace(broker=without(state.broker, message))


def singles(worker: Worker) -> list[Message]:
    """Messages of one job that a worker may begin now."""
    idle = worker.up and not worker.child and not worker.bundle
    return [message for message in sorted(set(worker.hand)) if len(message) == 1] if idle else []


def start(state: State, bounds: Bounds) -> Iterator[Step]:
    """A child asks the fence; a refused copy is gone."""
    for index, worker in enumerate(state.workers):
        for message in singles(worker):
            ((job, token),) = message
            rest = worker._replace(hand=without(worker.hand, message))
            row, run = state.rows[job], fresh_run(state, job)
            begun = step.start(row, bounds.rules, token, run, index)
            if begun is None:
                yield ("refuse", f"by {index}", f"of job {job}"), with_worker(state, index, rest)
            else:
                after = with_worker(state, index, rest._replace(child=(Child(job, token, run),)))
                forced = step.is_forced(row, bounds.rules)
                yield ("start", f"by {index}", f"of job {job}"), commit(after, with_row(state.rows, job, begun), forced=forced)


def end_run(state: State, bounds: Bounds) -> Iterator[Step]:
    """A run ends, in a worker or an orphan; its outcome is on disk."""
    for index, worker in enumerate(state.workers):
        for child in () if worker.bundle else worker.child:
            for name, ends in (("finish", step.finish), ("fail", step.fail)):
                row = ends(state.rows[child.job], bounds.rules, child.token, child.run)
                rows = with_row(state.rows, child.job, row)
                after = commit(state, rows, forced=True) if row else state
                yield (name, f"by {index}", f"of job {child.job}"), with_worker(after, index, worker._replace(child=()))


def tell_death(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process tells that a child of its own is dead, and which job it was at."""
    for index, worker in enumerate(state.workers):
        for dead in worker.dying if worker.up else ():
            for job, token, run in dead.at:
                row = step.lose(state.rows[job], bounds.rules, token, run=run)
                after = commit(state, with_row(state.rows, job, row), forced=True) if row else state
                yield ("lose", f"by {index}", f"of job {job}"), with_dead(after, index, dead, dead._replace(at=()))


def with_dead(state: State, index: int, dead: Death, rest: Death) -> State:
    """The state with less of a death to be told."""
    worker = state.workers[index]
    told = tuple(rest if one == dead else one for one in worker.dying)
    return with_worker(state, index, worker._replace(dying=tuple(one for one in told if one.at or one.ended or one.left)))


def stop_run(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process stops a run that somebody has cancelled."""
    del bounds
    for index, worker in enumerate(state.workers):
        for child in worker.child if worker.up and not worker.bundle else ():
            row = step.terminate(state.rows[child.job], child.token, index)
            if row:
                after = commit(state, with_row(state.rows, child.job, row), forced=True)
                yield ("end_delivery", f"by {index}", f"of job {child.job}"), with_worker(after, index, worker._replace(child=()))


def expire(state: State, bounds: Bounds) -> Iterator[Step]:
    """The main process finds a message too old and ends its delivery; or the tick ends a job that waits."""
    if not bounds.expires:
        return
    for index, worker in enumerate(state.workers):
        for message in sorted(set(worker.hand)) if worker.up else ():
            ((job, token),) = message  # what expires travels alone
            rest = with_worker(state, index, worker._replace(hand=without(worker.hand, message)))
            row = step.expire(state.rows[job], bounds.rules, token, index)
            waited = state.rows[job].place != "running"
            after = commit(rest, with_row(state.rows, job, row), forced=True) if row else rest
            yield ("end_delivery", f"by {index}", f"of job {job}, expired"), excuse(after, job) if row and waited else after
    for job, row in enumerate(state.rows):
        ended = step.expire_waiting(row)
        if ended:
            yield ("expire", f"job {job}"), excuse(commit(state, with_row(state.rows, job, ended), forced=False), job)


def report(state: State, bounds: Bounds) -> Iterator[Step]:
    """A worker reports what it holds. One that was taken for dead is alive again."""
    for index, worker in enumerate(state.workers):
        if not worker.up:
            continue
        held = worker.holds()
        rows = tuple(_heard(state, job, index, (job, row.token) in held, bounds) for job, row in enumerate(state.rows))
        if rows != state.rows or held != worker.report or worker.lost or not worker.heard:
            after = with_worker(state, index, worker._replace(report=held, lost=False, heard=True))
            yield ("report", f"by {index}"), after._replace(rows=rows, older=state.older - {rows})


def _heard(state: State, job: int, worker: int, named: bool, bounds: Bounds) -> Row:  # noqa: FBT001 - what the report says
    """What a report says of a row that is missed, in broker or worker. Looks are as frequent as reports, and see what is in the broker."""
    row = state.rows[job]
    if row.missing is None or (row.place == "running" and row.worker != worker):
        return row
    if named and (row.place == "running" or bounds.rules.report_ends_missing):
        return row._replace(missing=None)
    if (job, row.token) in deliveries(state.broker) and bounds.rules.republish_asks_broker:
        return row
    return row._replace(missing=tuple(one for one in row.missing if one != worker))
