"""Simulated days: schedules of every policy beside a model, with outages, pauses, changes, runs by hand, and clocks that are set."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fix_effort import EFFORT
from fix_schedules import HOUR, schedule, tick
from schedule_model import Model, Run

if TYPE_CHECKING:
    from uuid import UUID

    from fix_sql import Session

START = datetime(2031, 3, 28, 0, 0, 7, tzinfo=UTC)  # later than now: time only goes on; no moment at which something is due
DAYS = 11  # the clock is set in Berlin on 30 March, on Lord Howe on 5 April
ZONES = ["Europe/Berlin", "Australia/Lord_Howe", "UTC"]
CRONS = [
    "0 * * * *", "*/40 5-20 * * *", "30 2 * * *", "10,50 1-3 * * sat,sun", "every 50 minutes", "0 */3 L,1-15 * *", "20 4 * * mon-fri",
]  # fmt: skip
POLICIES = list(itertools.product(["skip", "once", "all"], ["allow", "skip", "queue_one", "cancel_old"]))
MINUTE = timedelta(minutes=1)


@dataclass
class World:
    """The database and the models, at one moment that only this passes on."""

    db: Session
    chance: random.Random
    now: datetime = START
    models: dict[str, Model] = field(default_factory=dict)
    running: dict[tuple[str, datetime], tuple[int, UUID]] = field(default_factory=dict)
    slots: dict[tuple[str, str], list[datetime]] = field(default_factory=dict)

    def at(self, moment: datetime) -> None:
        self.now = moment
        self.db.do("update public.pretended set at = %s", moment)

    def timing(self) -> tuple[str, str]:
        """An expression and a zone by chance."""
        cron, zone = self.chance.choice(CRONS), self.chance.choice(ZONES)
        if (cron, zone) not in self.slots:
            found = self.db.rows("select bridge.next_runs(%s, %s, 1000, %s)", cron, zone, START - 15 * 24 * HOUR)
            self.slots[cron, zone] = [row[0].astimezone(UTC) for row in found]
        return cron, zone

    def make(self, name: str, missed: str, overlap: str) -> None:
        cron, zone = self.timing()
        within = self.chance.choice([6 * HOUR, 168 * HOUR])
        schedule(self.db, name, cron, timezone=zone, missed=missed, overlap=overlap, missed_within=within, max_attempts=1)
        self.models[name] = Model(missed, overlap, within, self.slots[cron, zone])
        self.models[name].plan(self.now)

    def operate(self) -> None:
        """Somebody does something to one of the schedules."""
        name = self.chance.choice([*self.models])
        model, what = self.models[name], self.chance.choice(["pause", "resume", "resume", "cron", "cron", "end", "run"])
        if what == "pause":
            self.db.do("select bridge.pause_schedule(%s)", name)
            model.pause()
        elif what == "resume":
            self.db.do("select bridge.resume_schedule(%s)", name)
            model.resume(self.now)
        elif what == "run":
            refused = self.db.rows("select public.is_refused(%s)", name)[0][0]
            assert model.run_now(self.now) is not refused
        else:
            self.change(name, model, what)

    def change(self, name: str, model: Model, what: str) -> None:
        if what == "cron":
            cron, zone = self.timing()
            self.db.do("update bridge.schedule set cron = %s, timezone = %s where name = %s", cron, zone, name)
            if self.slots[cron, zone] is not model.slots:
                model.change(self.now, slots=self.slots[cron, zone], ends=model.ends)
        else:
            ends = self.chance.choice([None, None, self.now + self.chance.randrange(1, 30) * HOUR, self.now - HOUR])
            self.db.do("update bridge.schedule set ends_at = %s where name = %s", ends, name)
            if ends != model.ends:
                model.change(self.now, ends=ends)

    def end_runs(self) -> None:
        """End what has run for long enough, and what was cancelled."""
        for name, model in self.models.items():
            for run in model.live("open"):
                if run.ends is None or not (run.cancelled or run.ends <= self.now):
                    continue
                seq, token = self.running.pop((name, run.slot))
                run.status = "cancelled" if run.cancelled else "succeeded"
                call = "bridge.fail(%s, %s, '{}')" if run.cancelled else "bridge.finish(%s, %s, 'succeeded')"
                self.db.do(f"select {call}", seq, token)

    def start_jobs(self) -> None:
        """Workers start at once whatever is due; how long it will take is up to chance."""
        while claims := self.db.claim():
            self.db.mark(claims)
        started = self.db.rows(
            "select j.headers->>'bridge_schedule', j.headers->>'bridge_slot', i.seq, bridge.start(i.seq, i.token, %s, 1)"
            " from bridge.inflight i join bridge.job j using (seq) where i.state = 'published'",
            self.db.worker,
        )
        for name, slot, seq, token in started:
            moment = datetime.fromisoformat(slot)
            self.running[name, moment] = seq, token
            (run,) = [run for run in self.models[name].live("open") if run.slot == moment and run.ends is None]
            run.ends = self.now + self.chance.choice([0, 5, 40, 200]) * MINUTE

    def tick(self) -> None:
        # The worker is well, and knows of its runs.
        self.db.do("update bridge.worker set seen_at = %s, holding = array(select token from bridge.inflight)", self.now)
        while tick(self.db, self.now):
            pass
        for model in self.models.values():
            model.tick(self.now)

    def step(self) -> None:
        """Some minutes, now and then hours in which nobody ticks, or a clock that goes back."""
        kind = self.chance.random()
        if kind < 0.03:
            self.at(self.now + self.chance.uniform(1, 30) * HOUR)
        elif kind < 0.05:
            self.at(self.now - self.chance.uniform(5, 90) * MINUTE)
        else:
            self.at(self.now + self.chance.choice([0.5, 10, 20, 30]) * MINUTE)
        self.end_runs()
        if self.chance.random() < 0.3:
            self.operate()
        self.tick()
        self.start_jobs()


@pytest.fixture
def world(db: Session, request: pytest.FixtureRequest) -> World:
    db.do("create table public.pretended as select %s::timestamptz as at", START)
    clock = "returns timestamptz language sql volatile set search_path = pg_catalog, pg_temp return (select p.at from public.pretended p)"
    db.do(f"create or replace function bridge.schedule_clock() {clock}")
    db.do("""
        create function public.is_refused(name text) returns boolean language plpgsql as $$
        begin
          perform bridge.run_schedule(name);
          return false;
        exception when sqlstate 'JB006' then
          return true;
        end $$""")
    db.report()
    return World(db, random.Random(request.param))  # noqa: S311 - it is to be repeatable


def told(run: Run) -> tuple[Any, ...]:
    status = ("running" if run.ends else "queued") if run.status == "open" else run.status
    return run.slot, run.trigger, status


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", range(EFFORT), indirect=True)
def test_weeks_with_outages_pauses_and_changes_pass_as_the_policies_say(world: World) -> None:
    for missed, overlap in POLICIES:
        world.make(f"{missed} {overlap}", missed, overlap)
    while world.now < START + DAYS * 24 * HOUR:
        world.step()
    for name, model in world.models.items():
        found = world.db.rows("select slot, trigger_type, status from bridge.schedule_runs where schedule = %s order by id", name)
        assert [(row[0].astimezone(UTC), *row[1:]) for row in found] == [told(run) for run in model.log], name
        assert world.db.one("select next_at from bridge.schedule where name = %s", name) == model.next
    happened = {(run.trigger, run.status) for model in world.models.values() for run in model.log}
    assert {trigger for trigger, _ in happened} == {"scheduled", "catch_up", "manual"}
    assert {status for _, status in happened} >= {"succeeded", "skipped", "cancelled"}
    twice = "select 1 from bridge.schedule_run where trigger_type <> 'manual' group by schedule, slot having count(*) > 1"
    assert world.db.rows(twice) == []
    made = world.db.one("select count(*) from bridge.schedule_run where job is not null")
    assert world.db.one("select count(*) from bridge.jobs") == made
