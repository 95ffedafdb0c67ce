"""A run: a world under load, strikes by a plan that a seed gives, then peace, and the verdict."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from bisect import insort
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laboratory import checker, facts
from laboratory.errors import LabError, wait_until
from laboratory.faults import BECAME, FAULTS, MISSED, Cost, Fault
from laboratory.judgement import judge
from laboratory.report import Report, blow_of
from laboratory.tasks import QUEUES
from laboratory.traced import replayed
from laboratory.world import BROKEN, Needs, World, drop_folder, new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from laboratory.samples import Sampler

PEACE = 180.0  # seconds that everything may take to end when all is mended
BROKER_PEACE = 40.0  # and the broker to be empty
TOLD = 5.0  # seconds between two lines of progress
AGAIN = 0.5  # seconds until what is not done yet is tried again
COMBINED = 0.3  # of the strikes come with a second
HAVING = {
    "standby-sync": Needs(standby="sync"),
    "standby-async": Needs(standby="async"),
    "pgbouncer": Needs(pgbouncer=True),
    "cron": Needs(cron=True),
    "durable": Needs(durable=True),
    "disk": Needs(disk=True),
    "bundles": Needs(bundles=True),
    "streaming": Needs(streaming=True),
}
OFTEN = 0.4  # of the strikes are of what the world has beside the usual


@dataclass(frozen=True)
class Plan:
    """What a run is asked for.

    Attributes:
        seconds: how long faults strike.
        seed: of all that is drawn.
        broker: redis or rabbitmq.
        faults: names; empty: all that the world can have.
        every: seconds between two strikes, about.
        rate: calls of the load a second.
        spared: slots whose processes faults of processes leave alone.
        trace: record all changes of the jobs' rows, and replay them against the model.
        having: what the world has beside the usual, words of `HAVING`; faults that need it are drawn as well.
        patience: seconds beyond the others in which a strike that met nothing is tried again, and an order waits for who obeys it.
    """

    seconds: float = 60.0
    seed: int = 0
    broker: str = "redis"
    faults: tuple[str, ...] = ()
    every: float = 5.0
    rate: float = 20.0
    spared: tuple[str, ...] = ()
    trace: bool = False
    having: tuple[str, ...] = ()
    patience: float = 0.0

    @property
    def words(self) -> str:
        """The options of `python -m laboratory` that ask for the same load and the same strikes."""
        named = [f"--faults {','.join(self.faults)}"] if self.faults else []
        extra = [f"--with {word}" for word in self.having]
        drawn = [f"--every {self.every:g}", f"--rate {self.rate:g}", f"--seed {self.seed}", f"--broker {self.broker}"]
        return " ".join([*drawn, *extra, *named, "--trace" if self.trace else "--no-trace"])


@dataclass(frozen=True, order=True)
class Beat:
    """One strike of a plan: seconds after the beginning, how long, which, and what it draws from."""

    at: float
    hold: float
    fault: str
    seed: int


def kinds_of(plan: Plan) -> list[type[Fault]]:
    """The faults that a plan may draw.

    Raises:
        LabError: one that it names is unknown, or does not fit its broker.
    """
    has = has_of(plan)
    unknown = [name for name in plan.faults if name not in FAULTS]
    if unknown:
        raise LabError(f"no fault is called {', '.join(unknown)}: --list shows those that are")
    unfit = [name for name in plan.faults if not FAULTS[name].needs.fits(has)]
    if unfit:
        raise LabError(f"{', '.join(unfit)} cannot be had with {', '.join((plan.broker, *plan.having))}")
    named = [FAULTS[name] for name in plan.faults]
    plain = [kind for _, kind in sorted(FAULTS.items()) if kind.needs.fits(has) and has.with_(kind.needs) == has]
    return named or plain


def has_of(plan: Plan) -> Needs:
    """What the world has in any case."""
    has = Needs(broker=plan.broker)  # type: ignore[arg-type]
    for word in plan.having:
        if not has.fits(HAVING[word]):
            raise LabError(f"{word} cannot be had together with {', '.join(one for one in plan.having if one != word)}")
        has = has.with_(HAVING[word])
    return has


def needs_of(*plans: Plan) -> Needs:
    """What the world must have for them."""
    needs = Needs()
    for plan in plans:
        for name, more in (("a plan", has_of(plan)), *((kind.name, kind.needs) for kind in kinds_of(plan))):
            if not more.fits(needs):
                raise LabError(f"{name} cannot be had together with the others: it needs {more}")
            needs = needs.with_(more)
    return needs


def _one_of_each(kinds: Sequence[type[Fault]], chance: random.Random) -> list[type[Fault]]:
    """Those of no group, and of each group one that is drawn."""
    grouped = itertools.groupby(sorted(kinds, key=lambda kind: kind.group), key=lambda kind: kind.group)
    return [kind for group, ours in grouped for kind in ([chance.choice(list(ours))] if group else ours)]


def beats_of(plan: Plan) -> list[Beat]:
    """All strikes of a plan, drawn from its seed: the same seed, the same list.

    Every fault comes before any comes twice, but for those that need what the world has beside the usual: it has that for them. Of a
    group one comes each time, where the plan names no fault.
    """
    chance = random.Random(plan.seed)  # noqa: S311
    kinds, deck, beats = kinds_of(plan), [], []  # type: ignore[var-annotated]
    asked = [kind for kind in kinds if kind.needs not in (Needs(), Needs(broker=plan.broker))] if plan.having else []  # type: ignore[arg-type]
    at = plan.every / 2
    while at < plan.seconds:
        for _ in range(2 if chance.random() < COMBINED else 1):
            if not deck:
                cards = kinds if plan.faults else _one_of_each(kinds, chance)
                deck = chance.sample(cards, len(cards))
            kind = chance.choice(asked) if asked and chance.random() < OFTEN else deck.pop()
            beats.append(Beat(round(at, 2), round(chance.uniform(*kind.hold), 2), kind.name, chance.getrandbits(32)))
        at += plan.every * chance.uniform(0.7, 1.3)
    return beats


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, say: Callable[[str], None], folder: Path, sampler: Sampler | None = None) -> None:
        self.plan, self._say, self.folder, self._sampler = plan, say, folder, sampler
        self.report = Report(plan, beats_of(plan))
        self._struck: list[tuple[float, int, Fault]] = []  # by when they are to be mended
        self._began = 0.0
        self._number = self._before = 0
        self._broken: dict[str, list[tuple[Any, ...]]] = {}

    def say(self, words: str) -> None:
        """A line of the report, with the time since the beginning."""
        line = f"{time.monotonic() - self._began:7.1f}  {words}" if self._began else f"         {words}"
        self.report.lines.append(line)
        self._say(line)

    def run(self) -> Report:
        """All of it.

        Raises:
            LabError: the laboratory failed, not the product.
        """
        plan = self.plan
        for kind in kinds_of(plan):
            if lack := kind.lacks():
                raise LabError(f"{kind.name}: {lack}")
        with World(self.folder, needs_of(plan), seed=plan.seed, rate=plan.rate, say=self.say, trace=plan.trace) as world:
            self.go_through(world)
        return self.report

    def go_through(self, world: World) -> None:
        """All of it but the world, in which other runs may have been before."""
        world.spared = frozenset(self.plan.spared)
        self._number = self._before = world.ledger.one("select coalesce(max(id), 0) from strike")
        self._began_at = world.ledger.one("select clock_timestamp()")
        self._began = time.monotonic()
        self._strike_all(world)
        self._make_peace(world)
        self._judge(world)

    def _strike_all(self, world: World) -> None:
        beats = sorted(self.report.beats)
        told = 0.0
        while (now := time.monotonic() - self._began) < self.plan.seconds or (self._is_patient(now) and (beats or self._is_awaited())):
            while beats and beats[0].at <= now:
                beat = beats.pop(0)
                if self._strike(world, beat) == MISSED and self._is_patient(now):
                    insort(beats, replace(beat, at=now + AGAIN))
            self._mend_due(world, now)
            if now >= told:
                told = now + TOLD
                self._progress(world)
                self._look_at_rules(world)
            if self._sampler is not None:
                self._sampler(world)
            time.sleep(0.1)

    def _is_patient(self, now: float) -> bool:
        return now < self.plan.seconds + self.plan.patience

    def _is_awaited(self) -> bool:
        """Whether there is an order that nobody has obeyed yet."""
        return any(fault.waits() for _, _, fault in self._struck)

    def _strike(self, world: World, beat: Beat) -> str:
        self._number += 1
        fault = FAULTS[beat.fault](random.Random(beat.seed))  # noqa: S311
        world.ledger.strike(self._number, beat.fault)
        until = time.monotonic() - self._began + beat.hold
        cost = Cost()
        try:
            cost = fault.strike(world)
        except BROKEN as error:
            fault.became = MISSED
            self.say(f"{beat.fault} could not strike: {error}")
        world.ledger.cost(self._number, cost.again, cost.most, tail=cost.loses_tail, pids=cost.pids)
        world.ledger.became(self._number, fault.became)
        heapq.heappush(self._struck, (until, self._number, fault))
        self.say(f"strike {self._number} {beat.fault}" + (f" may cost runs of {', '.join(sorted(cost.again))}" if cost.again else ""))
        return fault.became

    def _mend_due(self, world: World, now: float) -> None:
        while self._struck and self._struck[0][0] <= now:
            _, number, fault = heapq.heappop(self._struck)
            if self.plan.patience and fault.waits() and self._is_patient(now):
                heapq.heappush(self._struck, (now + AGAIN, number, fault))
                return
            try:
                fault.mend(world)
            except BROKEN as error:
                self.say(f"{fault.name} could not be mended, once more in a second: {error}")
                heapq.heappush(self._struck, (now + 1.0, number, fault))
                return
            world.ledger.became(number, fault.became)
            world.ledger.mended(number)

    def _make_peace(self, world: World) -> None:
        """Mend everything, and wait until every job has ended."""
        world.stop_load()
        deadline = time.monotonic() + PEACE
        while self._struck and time.monotonic() < deadline:
            self._mend_due(world, float("inf") if time.monotonic() > deadline - PEACE / 2 else time.monotonic() - self._began + 1e6)
            time.sleep(0.2)
        world.heal()
        self._resume(world)
        for slot in world.slots.values():
            if slot.role != "client":
                slot.disarm()
                slot.let_start()
        self.say("all is mended, nothing is asked for any more")
        told = [0.0]

        def is_quiet() -> bool:
            if time.monotonic() > told[0] + TOLD:
                told[0] = time.monotonic()
                self._progress(world)
            return _live(world) == 0

        with suppress(LabError):  # the rule `stuck` says what is left
            wait_until(is_quiet, PEACE, "every job to end")
        with suppress(LabError):
            wait_until(lambda: _messages(world) == 0, BROKER_PEACE, "the broker to be empty")

    def _resume(self, world: World) -> None:
        """Let queues go on that an operator paused who has died since."""
        with suppress(*BROKEN), world.sql() as connection:
            for queue in QUEUES:
                connection.execute("select bridge.resume(%s)", (queue,))

    def _look_at_rules(self, world: World) -> None:
        """What must hold at every moment is asked for while faults strike, too."""
        with suppress(*BROKEN), world.sql() as connection, connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            for name, rows in facts.broken_rules(connection).items():
                self._broken.setdefault(f"{name}, after {time.monotonic() - self._began:.1f} s", rows)

    def _judge(self, world: World) -> None:
        known = facts.read(world.dsn, world.ledger, slack=world.slack)
        known.messages = _messages(world)
        known.broken_rules |= self._broken
        known.ends = [end for slot in world.slots.values() if slot.role != "client" for end in slot.ends]
        self.report.sins = checker.check(known)
        if self._sampler is not None:
            raised = dict(world.ledger.all("select pid, count(*) from event where event = 'raised' group by pid"))
            self.report.sins += judge(self._sampler.samples, raised)
        if self.plan.trace:
            sins, taken = replayed(world.dsn, max_losses=world.settings["max_losses"])
            self.report.sins += sins
            self.say("steps of the model: " + ", ".join(f"{name} {count}" for name, count in taken.most_common()))
        statuses: dict[str, int] = {}
        for jobs in known.jobs.values():
            for job in jobs:
                statuses[job.status] = statuses.get(job.status, 0) + 1
        self.report.blows = [blow_of(one, self._began_at) for one in known.strikes if one.id > self._before]
        became = Counter(one.became for one in known.strikes)
        runs = sum(len(runs) for runs in known.runs.values())
        again = sum(1 for _ in checker.repeated(known))
        self.report.counts = {
            "asked": len(known.asked), "unknown": sum(1 for one in known.asked.values() if one.outcome is None),
            **statuses, **_forgotten(known), "runs": runs, "run again": again, "strikes": len(known.strikes),
            **{name: became[name] for name in BECAME if became[name]}, "sins": len(self.report.sins),
        }  # fmt: skip
        self.say(", ".join(f"{name} {count}" for name, count in self.report.counts.items()))

    def _progress(self, world: World) -> None:
        asked = world.ledger.one("select count(*) from asked")
        ended = world.ledger.one("select count(distinct lab) from event where event = 'end'")
        self.say(f"asked for {asked}, ended {ended}, live {_live(world)}, in the broker {_messages(world)}")


def _forgotten(known: facts.Facts) -> dict[str, int]:
    """How many committed jobs an asynchronous failover has cost, where there was one."""
    missing = [lab for lab, one in known.asked.items() if one.outcome == "committed" and lab not in known.jobs]
    return {"lost in a tail": len(missing)} if any(one.tail for one in known.strikes) else {}


def _live(world: World) -> int | None:
    with suppress(*BROKEN), world.sql() as connection:
        return facts.unended(connection)
    return None


def _messages(world: World) -> int | None:
    with suppress(*BROKEN):
        return world.messages()
    return None


def run(plan: Plan, say: Callable[[str], None] = lambda _line: None, *, keep: bool = False, sampler: Sampler | None = None) -> Report:
    """Run a plan in a new folder, which is gone afterwards unless it is kept; with a sampler, what it takes is judged as well."""
    folder = new_folder()
    try:
        return Run(plan, say, folder, sampler).run()
    finally:
        if keep:
            say(f"kept {folder}")
        else:
            drop_folder(folder)


def run_in_turn(plans: Sequence[Plan], say: Callable[[str], None] = lambda _line: None) -> list[Report]:
    """Run plans one after the other in one world, which takes longer to build than most of them: it has what any of them needs.

    Each is judged with all that was before it, so the first that has sins is the last.

    Returns:
        What came of each that was run.
    """
    folder = new_folder()
    try:
        with World(folder, needs_of(*plans), seed=plans[0].seed, rate=plans[0].rate, say=say) as world:
            return [one.report for one in _in_turn(world, [Run(plan, say, folder) for plan in plans])]
    finally:
        drop_folder(folder)


def _in_turn(world: World, runs: Sequence[Run]) -> Iterator[Run]:
    for number, one in enumerate(runs):
        if number > 0:
            world.start_load()
        one.go_through(world)
        yield one
        if one.report.sins:
            return
