"""The row of a job and its steps: each a pure function of the row before, None where the step is refused.

The names are those of the SQL functions, and of docs/life-of-a-job.md. A token, a run, a shipment is a small number; 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
WITH_BROKER = frozenset({"claimed", "published"})
FLYING = WITH_BROKER | {"running"}
NOBODY = -1


class Row(NamedTuple):
    """What Postgres knows of a job. `missing` is None, or whose reports are to be heard before what is missing counts as gone.

    `together` is a run that was started with others of its bundle, and has perhaps not begun; `alone` a job that goes into none any more.
    """

    place: str = "ready"
    token: int = 0
    copied: bool = False
    shipment: int = 0
    run: int = 0
    worker: int = NOBODY
    missing: tuple[int, ...] | None = None
    stop: bool = False
    attempts: int = 0
    losses: int = 0
    together: bool = False
    alone: bool = False

    def waits(self, place: str = "ready", token: int = 0) -> Row:
        """Back where it waits, its flight over."""
        return Row(place, token, attempts=self.attempts, losses=self.losses, alone=self.alone)

    def ends(self, place: str, counted: int = 0) -> Row:
        """Into history."""
        return Row(place, attempts=self.attempts + counted, losses=self.losses)


@dataclass(frozen=True)
class Rules:
    """The guards of the protocol, each of which can be switched off to see what it is for."""

    max_attempts: int = 2
    max_losses: int = 1
    start_checks_token: bool = True
    start_checks_state: bool = True
    start_is_forced_for_copies: bool = True
    start_is_forced_before_mark: bool = True
    claim_notes_copies: bool = True
    unclaim_keeps_token: bool = True
    mark_checks_state: bool = True
    mark_checks_shipment: bool = True
    mark_is_forced: bool = True
    finish_names_run: bool = True
    finish_knows_forgotten_starts: bool = True
    lose_names_run: bool = True
    sweep_names_worker: bool = True
    sweep_asks_reports: bool = True
    lose_ends_delivery: bool = True
    expiry_spares_runs: bool = True
    release_spares_runs: bool = True
    republish_asks_broker: bool = True
    republish_asks_reports: bool = True
    republish_waits: bool = True
    republish_is_fair: bool = True
    republish_notes_copies: bool = True
    republish_is_forced: bool = True
    report_ends_missing: bool = True
    attempts_are_bounded: bool = True
    losses_are_bounded: bool = True
    slice_skips_refused: bool = True
    slice_is_asked_anew: bool = True
    unbundle_spares_ends: bool = True
    unbundle_names_run: bool = True
    put_back_is_free: bool = True
    lose_spares_slices: bool = True

    def know_the_dead(self) -> bool:
        """Whether nothing comes of a dead copy."""
        return self.start_checks_token and self.mark_checks_shipment and self.slice_skips_refused and self.slice_is_asked_anew


PRODUCT = Rules()


def claim(row: Row, rules: Rules, token: int, shipment: int) -> Row | None:
    """A drainer takes what is ready; `token` is a new one, for a delivery that has none."""
    if row.place != "ready":
        return None
    kept = row.token > 0
    return row._replace(place="claimed", token=row.token if kept else token, copied=kept and rules.claim_notes_copies, shipment=shipment)


def unclaim(row: Row, rules: Rules, shipment: int | None = None) -> Row | None:
    """Put back what may not have been sent. A token that is forgotten is kept as its negative, for `promise` to know."""
    if row.place != "claimed" or shipment not in {None, row.shipment}:
        return None
    return row.waits(token=row.token if rules.unclaim_keeps_token else -row.token)


def mark_published(row: Row, rules: Rules, shipment: int) -> Row | None:
    """The broker has confirmed."""
    if row.place not in FLYING or (rules.mark_checks_shipment and row.shipment != shipment):
        return None
    if rules.mark_checks_state and row.place != "claimed":
        return None
    return row._replace(place="published", run=0, worker=NOBODY)


def republish(row: Row, rules: Rules, shipment: int) -> Row | None:
    """Claim again what is gone, by evidence that others have gathered."""
    if row.place != "published" or row.missing != ():
        return None
    return row._replace(place="claimed", missing=None, copied=rules.republish_notes_copies, shipment=shipment)


def start(row: Row, rules: Rules, token: int, run: int, worker: int, *, together: bool = False) -> Row | None:
    """The fence."""
    if row.place not in FLYING or (rules.start_checks_token and row.token != token):
        return None
    if rules.start_checks_state and row.place == "running":
        return None
    return row._replace(place="running", run=run, worker=worker, missing=None, together=together)


def start_again(row: Row, run: int) -> Row | None:
    """The fence is asked anew about a run of a slice that has not begun: it goes on, or has been cancelled."""
    if row.place != "running" or row.run != run:
        return None
    return row.ends("cancelled") if row.stop else row


def is_forced(row: Row, rules: Rules) -> bool:
    """Whether a start of this row waits for the disk."""
    return (row.copied and rules.start_is_forced_for_copies) or (row.place == "claimed" and rules.start_is_forced_before_mark)


def has(row: Row, rules: Rules, token: int, run: int) -> bool:
    """Whether the row is this run's; a start that a crash forgot is known by its token."""
    if row.place not in FLYING:
        return False
    if not rules.finish_names_run:
        return True
    return row.run == run or (rules.finish_knows_forgotten_starts and row.run == 0 and row.token == token)


def finish(row: Row, rules: Rules, token: int, run: int) -> Row | None:
    """The run has returned."""
    return row.ends("succeeded", 1) if has(row, rules, token, run) else None


def fail(row: Row, rules: Rules, token: int, run: int) -> Row | None:
    """The run has raised: a next attempt, while there is one."""
    if not has(row, rules, token, run):
        return None
    if row.stop:
        return row.ends("cancelled", 1)
    if rules.attempts_are_bounded and row.attempts + 1 >= rules.max_attempts:
        return row.ends("failed", 1)
    return row._replace(attempts=row.attempts + 1).waits("scheduled")


def lose(row: Row, rules: Rules, token: int, *, run: int | None = None, worker: int | None = None) -> Row | None:
    """Whoever had this delivery is dead: a child whose run was `run` (0: it had not begun), or a `worker`."""
    another_run = run is not None and rules.lose_names_run and row.run != run
    another_worker = worker is not None and rules.sweep_names_worker and row.worker != worker
    if row.place not in FLYING or row.token != token or (row.place == "running" and (another_run or another_worker)):
        return None
    kept = 0 if rules.lose_ends_delivery else row.token
    if row.together and run is None and rules.lose_spares_slices:
        return put_back(row, rules, alone=True)
    if row.stop:
        return row.ends("cancelled", 1)
    if row.place != "running":
        return row.waits(token=kept)
    if rules.losses_are_bounded and row.losses + 1 > rules.max_losses:
        return row.ends("failed", 1)
    return row._replace(losses=row.losses + 1).waits(token=kept)


def release(row: Row, token: int) -> Row | None:
    """A worker that stops gives back what it has not begun."""
    return row.waits() if row.place in WITH_BROKER and row.token == token else None


def unbundle(row: Row, rules: Rules, token: int, run: int, *, alone: bool) -> Row | None:
    """Give back what of a bundle has not begun: of what runs, the run that its process had started."""
    if row.place not in FLYING or row.token != token:
        return None
    if row.place == "running":
        return put_back(row, rules, alone=alone) if row.run == run or not rules.unbundle_names_run else None
    return row.waits()._replace(alone=row.alone or alone)


def put_back(row: Row, rules: Rules, *, alone: bool) -> Row:
    """A run that has perhaps not begun is over."""
    if row.stop:
        return row.ends("cancelled")
    return row._replace(losses=row.losses + (not rules.put_back_is_free), alone=row.alone or alone).waits()


def break_off(row: Row, worker: int) -> Row | None:
    """A worker that has stopped gives back a run of its own."""
    if row.place != "running" or row.worker != worker:
        return None
    return row.ends("cancelled", int(not row.together)) if row.stop else row.waits()


def expire(row: Row, rules: Rules, token: int, worker: int) -> Row | None:
    """A worker's main process finds a message too old."""
    if row.place not in FLYING or row.token != token:
        return None
    if row.place == "running" and (rules.expiry_spares_runs or row.worker != worker):
        return None
    return row.ends("expired", int(row.place == "running"))


def expire_waiting(row: Row) -> Row | None:
    """The tick finds that its time is over."""
    return row.ends("expired") if row.place in {"ready", "scheduled", "published"} else None


def terminate(row: Row, token: int, worker: int) -> Row | None:
    """A worker's main process has stopped a cancelled run of its own."""
    if row.place != "running" or row.token != token or row.worker != worker or not row.stop:
        return None
    return row.ends("cancelled", 1)


def cancel(row: Row) -> Row | None:
    """An operator: what waits ends, what runs is asked to stop."""
    if row.place in FINAL or row.stop:
        return None
    return row._replace(stop=True) if row.place == "running" else row.ends("cancelled")


def come_due(row: Row) -> Row | None:
    """The tick: a retry's pause is over."""
    return row._replace(place="ready") if row.place == "scheduled" else None
