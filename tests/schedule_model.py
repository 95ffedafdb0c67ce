"""What a schedule should do, in a few lines of Python: the model beside which weeks of ticks are held."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta

GRACE = timedelta(seconds=60)


@dataclass
class Run:
    """One line of the log; `ends` is when the run will have ended, once it has started."""

    slot: datetime
    trigger: str
    status: str  # open, waiting, or how it ended
    ends: datetime | None = None
    cancelled: bool = False


@dataclass
class Model:
    """One schedule, and the log of its runs. `slots` are all moments at which its expression is due."""

    missed: str
    overlap: str
    within: timedelta
    slots: list[datetime]
    enabled: bool = True
    ends: datetime | None = None
    next: datetime | None = None
    log: list[Run] = field(default_factory=list)

    def after(self, moment: datetime) -> datetime:
        return self.slots[bisect_right(self.slots, moment)]

    def last(self, moment: datetime) -> datetime:
        return self.slots[bisect_right(self.slots, moment) - 1]

    def bounded(self, moment: datetime) -> datetime:
        return min(moment, self.ends or moment)

    def live(self, status: str) -> list[Run]:
        return [run for run in self.log if run.status == status]

    # What an operator does.

    def plan(self, now: datetime) -> None:
        following = self.after(now)
        self.next = following if self.enabled and following <= (self.ends or following) else None

    def change(self, now: datetime, *, slots: list[datetime] | None = None, ends: datetime | None = None) -> None:
        self.slots, self.ends = slots or self.slots, ends
        if self.next is None or self.next > self.bounded(now):
            self.plan(now)

    def pause(self) -> None:
        self.enabled, self.next = False, None

    def resume(self, now: datetime) -> None:
        if not self.enabled:
            self.enabled = True
            self.plan(now)

    def run_now(self, now: datetime) -> bool:
        if self.overlap != "allow" and self.live("open"):
            return False
        self.log.append(Run(now, "manual", "open"))
        return True

    # What time does.

    def tick(self, now: datetime) -> None:
        if self.enabled and not self.live("open"):
            for run in self.live("waiting"):
                run.status = "open"
        if self.next is not None and self.next <= now:
            self.fire(now)

    def fire(self, now: datetime) -> None:
        assert self.next is not None
        late = now - GRACE
        slot = self.make_up(self.next, late, now) if self.next <= late else self.next
        while slot <= self.bounded(now):
            self.run(slot, "catch_up" if slot <= late else "scheduled")
            slot = self.after(slot)
        self.next = slot if slot <= (self.ends or slot) else None

    def make_up(self, first: datetime, late: datetime, now: datetime) -> datetime:
        """Slots that were missed; the one to go on with."""
        bound, last = now - self.within, max(first, self.last(self.bounded(late)))
        if self.missed == "all":
            if first >= bound:
                return first
            self.note(first, "catch_up", "skipped")
            return self.after(bound)
        following = self.after(last)
        if self.missed == "skip" or last < bound or following <= self.bounded(now):
            self.note(first, "catch_up", "skipped")
        else:
            if first < last:
                self.note(first, "catch_up", "skipped")
            self.run(last, "catch_up")
        return following

    def run(self, slot: datetime, trigger: str) -> None:
        if self.overlap == "cancel_old":
            self.cancel()
        met = self.overlap != "allow" and bool(self.live("open") or self.live("waiting"))
        if not met:
            self.note(slot, trigger, "open")
        elif self.overlap == "skip" or self.live("waiting"):
            self.note(slot, trigger, "skipped")
        else:
            self.note(slot, trigger, "waiting")

    def cancel(self) -> None:
        if self.live("open"):
            for run in self.live("waiting"):
                run.status = "skipped"
        for run in self.live("open"):
            run.cancelled = True
            if run.ends is None:  # it had not started
                run.status = "cancelled"

    def note(self, slot: datetime, trigger: str, status: str) -> None:
        if not any(run.slot == slot for run in self.log if run.trigger != "manual"):
            self.log.append(Run(slot, trigger, status))
