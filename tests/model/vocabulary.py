"""What the functions of SQL may do with a row, in the words of the model: each name has the steps of `rows` that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model import rows as step
from model.rows import FINAL, WITH_BROKER, Row, Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_REST = frozenset({"ready", "scheduled", "blocked"})
STALE = -2  # a number that ought to be new and is not


@dataclass(frozen=True)
class Seen:
    """A step as it was seen: the row before, the row after, and what else is known.

    Attributes:
        fresh: numbers from this one on were not there before.
        run: the run that history names for what ended; 0: none.
        rules: with this job's bounds, and whether a crash may have forgotten its start.
        late: the job has a deadline, and may end by it.
    """

    row: Row
    after: Row
    fresh: int
    run: int
    rules: Rules
    late: bool

    def new(self, number: int) -> int:
        """The number, when it is a new one."""
        return number if number >= self.fresh else STALE


STEPS: dict[str, Callable[[Seen], Iterator[Row | None]]] = {}


def known_as(*names: str) -> Callable[[Callable[[Seen], Iterator[Row | None]]], Callable[[Seen], Iterator[Row | None]]]:
    """Register what functions of these names may do."""

    def register(allows: Callable[[Seen], Iterator[Row | None]]) -> Callable[[Seen], Iterator[Row | None]]:
        STEPS.update(dict.fromkeys(names, allows))
        return allows

    return register


def resting(row: Row) -> Row:
    """The model has no parents: what waits for one waits as for a time."""
    return row._replace(place="scheduled") if row.place == "blocked" else row


def placed(row: Row | None) -> Iterator[Row | None]:
    """A pause may be over at once, and a clock that was set back makes one."""
    yield row
    if row and row.place in AT_REST and not row.token:
        yield row._replace(place="ready")
        yield row._replace(place="scheduled")


@known_as("claim", "claim_held")
def claim(seen: Seen) -> Iterator[Row | None]:
    token = seen.row.token or seen.new(seen.after.token)
    yield step.claim(seen.row, seen.rules, token, seen.new(seen.after.shipment))


@known_as("unclaim")
def unclaim(seen: Seen) -> Iterator[Row | None]:
    yield step.unclaim(seen.row, seen.rules)


@known_as("mark_published")
def mark_published(seen: Seen) -> Iterator[Row | None]:
    yield step.mark_published(seen.row, seen.rules, seen.row.shipment)


@known_as("republish")
def republish(seen: Seen) -> Iterator[Row | None]:
    yield step.republish(seen.row, seen.rules, seen.new(seen.after.shipment))


@known_as("mark_missing")
def mark_missing(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place == "published":
        yield seen.row._replace(missing=() if seen.row.missing is None else None)


@known_as("forget_missing")
def forget_missing(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place == "published":
        yield seen.row._replace(missing=None)


@known_as("note_unheld")
def note_unheld(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place == "running":
        yield seen.row._replace(missing=() if seen.row.missing is None else None)


@known_as("start")
def start(seen: Seen) -> Iterator[Row | None]:
    yield step.start(seen.row, seen.rules, seen.row.token, seen.new(seen.after.run), seen.after.worker)


@known_as("start_many")
def start_many(seen: Seen) -> Iterator[Row | None]:
    """A slice of one, or of several."""
    run = seen.new(seen.after.run)
    for together in (False, True):
        yield step.start(seen.row, seen.rules, seen.row.token, run, seen.after.worker, together=together)


@known_as("start_again")
def start_again(seen: Seen) -> Iterator[Row | None]:
    yield step.start_again(seen.row, seen.row.run)


@known_as("finish", "finish_many")
def finish(seen: Seen) -> Iterator[Row | None]:
    row = step.finish(seen.row, seen.rules, seen.row.token, seen.run)
    if row:
        yield from (row._replace(place=status) for status in ("succeeded", "failed", "cancelled"))


@known_as("fail")
def fail(seen: Seen) -> Iterator[Row | None]:
    """An error that is not to be retried, and a deadline, end a job before its attempts are used up."""
    row = step.fail(seen.row, seen.rules, seen.row.token, seen.run)
    yield from placed(row)
    if row and not seen.row.stop:
        yield seen.row.ends("failed", 1)


@known_as("retry_run", "step_aside", "take_replaced")
def go_on(seen: Seen) -> Iterator[Row | None]:
    """What a run asks for itself: its own bound is Celery's, and it may wait for the task that takes its place."""
    if seen.row.place == "blocked":
        yield from placed(seen.row.waits())
    yield from fail(replace(seen, rules=replace(seen.rules, attempts_are_bounded=False)))
    if not seen.row.stop and step.has(seen.row, seen.rules, seen.row.token, seen.run):
        yield seen.row._replace(attempts=seen.row.attempts + 1).waits("blocked")


@known_as("lose")
def lose(seen: Seen) -> Iterator[Row | None]:
    row = step.lose(seen.row, seen.rules, seen.row.token, run=seen.row.run, worker=seen.row.worker)
    yield from placed(row)
    yield from placed(step.lose(seen.row, seen.rules, seen.row.token, worker=seen.row.worker))  # a sweep, of a slice
    if row and seen.late and seen.row.place == "running" and not seen.row.stop:
        yield seen.row.ends("failed", 1)


@known_as("release")
def release(seen: Seen) -> Iterator[Row | None]:
    yield step.release(seen.row, seen.row.token)


@known_as("unbundle")
def unbundle(seen: Seen) -> Iterator[Row | None]:
    """In two steps where it has not been started: that it is alone from now on, and its release."""
    if seen.row.place in WITH_BROKER:
        yield seen.row._replace(alone=True)
    for alone in (False, True):
        yield from placed(step.unbundle(seen.row, seen.rules, seen.row.token, seen.row.run, alone=alone))


@known_as("stop_worker")
def stop_worker(seen: Seen) -> Iterator[Row | None]:
    yield from placed(step.break_off(seen.row, seen.row.worker))


@known_as("end_delivery")
def end_delivery(seen: Seen) -> Iterator[Row | None]:
    """Too old, unknown, revoked; or a run of its own child by its time limit, or by people."""
    yield step.expire(seen.row, seen.rules, seen.row.token, seen.row.worker)
    yield step.terminate(seen.row, seen.row.token, seen.row.worker)
    if seen.row.place in WITH_BROKER:
        yield step.cancel(seen.row)
        yield seen.row.ends("failed", int(seen.after.attempts > seen.row.attempts))
    yield from fail(seen)


@known_as("expire_due")
def expire_due(seen: Seen) -> Iterator[Row | None]:
    yield step.expire_waiting(resting(seen.row))


@known_as("end_overdue")
def end_overdue(seen: Seen) -> Iterator[Row | None]:
    row = step.expire_waiting(resting(seen.row))
    yield row
    yield row and row._replace(place="failed")


@known_as("cancel_job", "purge", "add_job", "settle_child", "fail_children", "forget_parents")
def cancel(seen: Seen) -> Iterator[Row | None]:
    """By people, by a revoke that came before its job, or because of a parent."""
    yield step.cancel(resting(seen.row))


@known_as("move_due", "retry")
def come_due(seen: Seen) -> Iterator[Row | None]:
    yield step.come_due(seen.row)


@known_as("unblock")
def unblock(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place == "blocked":
        yield from placed(seen.row.waits())


@known_as("change_waiting", "hold_waiting", "take_waiting")
def change(seen: Seen) -> Iterator[Row | None]:
    """People, or a second job of its key, change what has not begun: a delivery that it had is worth nothing any more."""
    if seen.row.place in AT_REST | WITH_BROKER:
        yield from placed(seen.row.waits())


@known_as("complete_waiting")
def complete_waiting(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place in AT_REST | WITH_BROKER:
        yield seen.row.ends("succeeded")


@known_as("settle_unreported")
def settle_unreported(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place == "published":
        yield seen.row.ends("succeeded", 1)


@known_as("take_ended")
def reopen(seen: Seen) -> Iterator[Row | None]:
    if seen.row.place in FINAL:
        yield from placed(seen.row._replace(losses=0).waits())


@known_as("make_way")
def make_way(seen: Seen) -> Iterator[Row | None]:
    """An ended job gives way to a new one of its id."""
    if seen.row.place in FINAL:
        yield from placed(Row())
        yield Row("blocked")
