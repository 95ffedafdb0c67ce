"""What must hold: of every state, and of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.rows import FINAL, FLYING
from model.state import deliveries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.moves import Label
    from model.rows import Row
    from model.state import Bounds, Child, State, Worker


def broken_state(state: State, bounds: Bounds) -> str | None:
    """What of the promise this state breaks, in words; None when it keeps it."""
    for job, row in enumerate(state.rows):
        if row.attempts > bounds.rules.max_attempts:
            return f"job {job} has ended {row.attempts} attempts, and may {bounds.rules.max_attempts}"
        if row.losses > bounds.rules.max_losses:
            return f"job {job} was lost {row.losses} times, and may be {bounds.rules.max_losses} times"
        living = list(_living(state, job))
        if len(living) > 1:
            return f"two living workers run job {job}"
        for child in living:
            if not (row.place in FLYING and (row.run == child.run or (row.run == 0 and row.token == child.token))):
                return f"a run of job {job} in a living worker was superseded"
    return None


def _living(state: State, job: int) -> Iterator[Child]:
    """Runs of a job that nothing excuses from being the one."""
    return (child for worker in _heard(state) for child in worker.runs() if child.job == job and not child.excused)


def _heard(state: State) -> Iterator[Worker]:
    """Workers that live, and are not taken for dead."""
    return (worker for worker in state.workers if worker.up and not worker.lost)


def broken_step(before: State, label: Label, after: State) -> str | None:
    """What of the promise a step breaks, in words; None when it keeps it."""
    name = label[0]
    for job, (old, new) in enumerate(zip(before.rows, after.rows, strict=True)):
        if old.place in FINAL and old != new and name != "postgres crashes":
            return f"job {job} had ended, and changed"
        if name == "claim" and old.token < 0 < new.token and _is_about(before, job, -old.token):
            return f"a copy of job {job} that was sent is worth nothing, though nobody has ended its delivery"
        if name == "republish" and old != new and _is_about(before, job, old.token):
            return f"job {job} was published again, and its message was not gone"
        if name == "mark_published" and old.place != new.place == "published" and not _has_sent(before, after, job, new.token):
            return f"job {job} is called published, and nobody has sent its message"
        if name != "postgres crashes" and _was_charged(old, new) and (job, old.run) in before.unbegun:
            return f"job {job} was charged, and had not begun"
    return _broken_end(before, label, after) if name in {"finish", "fail", "finish_many"} else None


def _was_charged(old: Row, new: Row) -> bool:
    return new.attempts > old.attempts or new.losses > old.losses


def _is_about(state: State, job: int, token: int) -> bool:
    """Whether a copy of a delivery is in the broker, or with a worker that lives and is heard."""
    return (job, token) in deliveries(state.broker) or any(
        (job, token) in worker.not_begun() or any((c.job, c.token) == (job, token) and not c.excused for c in worker.runs())
        for worker in _heard(state)
    )


def _has_sent(before: State, after: State, job: int, token: int) -> bool:
    """Whether who marks has sent this delivery."""
    return any((job, token) in drainer.jobs for drainer in before.drainers if drainer.phase == "sent" and drainer not in after.drainers)


def _broken_end(before: State, label: Label, after: State) -> str | None:
    index = int(label[1].removeprefix("by "))
    worker = before.workers[index]
    told = list(worker.runs())
    for child in after.workers[index].runs():
        if child in told:
            told.remove(child)
    for child in told:
        counted = before.rows[child.job] != after.rows[child.job]
        row = before.rows[child.job]
        if counted and row.run != child.run and not (row.run == 0 and row.token == child.token):
            return f"a superseded run changed the row of job {child.job}"
        if not counted and not child.excused and worker.up and not worker.lost:
            return f"what a run of job {child.job} has come to, in a living worker, was not taken"
    return None
