"""What must hold after a scenario, asked of all that is known: each rule gives the sins against it, and none may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from laboratory.history import history

if TYPE_CHECKING:
    from datetime import datetime

    from laboratory.facts import Facts, Run, Strike

FINAL = ("succeeded", "failed", "cancelled", "expired")
FOLLOWED = {"failed", "retried"}  # a run that ended so is rightly followed by another
LATE = 5.0  # seconds from the end of a run to the commit of what has become of it
Rule = Callable[[Any], Iterator[tuple[int | None, str]]]
RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Sin:
    """A promise that was broken.

    Attributes:
        rule: which.
        lab: the number of the job; None when it is about no single one.
        words: how.
        history: what is known of the job, a line each.
    """

    rule: str
    lab: int | None
    words: str
    history: tuple[str, ...] = ()


def rule(check: Rule) -> Rule:
    """Register a rule by its name."""
    RULES[check.__name__] = check
    return check


def check(facts: Facts) -> list[Sin]:
    """All sins, rule by rule."""
    return [
        Sin(name, lab, words, tuple(history(facts, lab)) if lab is not None else ())
        for name, ask in RULES.items()
        for lab, words in ask(facts)
    ]


@rule
def lost(facts: Facts) -> Iterator[tuple[int, str]]:
    """A committed job has a row, and every one that must follow it."""
    for lab, asked in facts.asked.items():
        awaited = all(_status(facts, parent) == "succeeded" for parent in asked.parents)
        if asked.outcome == "committed" and awaited and lab not in facts.jobs and not _in_a_tail(facts, lab):
            yield lab, f"{asked.kind} was committed at {asked.told_at:%X.%f} and has no row"


@rule
def made_though_refused(facts: Facts) -> Iterator[tuple[int, str]]:
    """What was rolled back, refused or left to another's key was never there."""
    for lab, asked in facts.asked.items():
        if asked.outcome in ("refused", "skipped") and (lab in facts.jobs or lab in facts.runs):
            yield lab, f"{asked.kind} was {asked.outcome} and is there"


@rule
def made_twice(facts: Facts) -> Iterator[tuple[int, str]]:
    """A call makes one job."""
    for lab, jobs in facts.jobs.items():
        if len(jobs) > 1:
            yield lab, f"{len(jobs)} jobs carry this number: {', '.join(job.id for job in jobs)}"


@rule
def stuck(facts: Facts) -> Iterator[tuple[int, str]]:
    """When all is mended and has had its time, every job has ended."""
    for lab, jobs in facts.jobs.items():
        for job in jobs:
            if job.status not in FINAL:
                yield lab, f"{job.task} is still {job.status}"


@rule
def wrong_end(facts: Facts) -> Iterator[tuple[int, str]]:
    """A job ends as its task says, with the attempts that its task needs and its own result."""
    for lab, jobs in facts.jobs.items():
        asked = facts.asked.get(lab)
        for job in jobs:
            if asked is None:
                yield lab, "nobody asked for it"
            elif job.status in FINAL and asked.expected and job.status not in asked.expected:
                yield lab, f"{asked.kind} is {job.status}, not {' or '.join(asked.expected)}"
            elif asked.attempts is not None and job.status in FINAL and job.attempts != asked.attempts and not facts.was_retried(lab):
                yield lab, f"{asked.kind} has {job.attempts} attempts, not {asked.attempts}"
            elif job.status == "succeeded" and job.result != str(lab):
                yield lab, f"{asked.kind} succeeded with the result {job.result}, not its number"


@rule
def out_of_place(facts: Facts) -> Iterator[tuple[None, str]]:
    """What must hold in the tables at every moment, see invariants.py."""
    for name, rows in facts.broken_rules.items():
        yield None, f"{name}: {rows}"


@rule
def started_twice(facts: Facts) -> Iterator[tuple[int, str]]:
    """One start a run, and one run a delivery: an attempt begins once, however many copies of its message there are.

    What a crash of Postgres has forgotten may start once more: not awaited on disk is a start of which nobody made a copy.
    """
    for runs in facts.runs.values():
        begun: dict[str, Run] = {}
        for run in runs:
            if run.starts > 1:
                yield run.lab, f"run {run.run} started {run.starts} times"
            if run.delivery is not None:
                one = begun.setdefault(run.delivery, run)
                if one is not run and not _crashed(facts, one.started, run.started):
                    yield run.lab, f"delivery {run.delivery} was started by {one.run} and by {run.run}"


@rule
def rows_and_witness_differ(facts: Facts) -> Iterator[tuple[int, str]]:
    """What ran has its attempt in the rows, and an attempt that had an end of its own was seen to begin."""
    seen = {run.run for run in _runs(facts)}
    for lab in facts.jobs:
        for run in facts.runs.get(lab, []):
            if run.run not in facts.outcomes and not _crashed(facts, run.started, run.over or run.started):
                yield lab, f"run {run.run} in {run.slot} is in no row"
        for row in facts.attempts_of(lab):
            if row.run is not None and row.run not in seen and row.outcome in ("succeeded", *FOLLOWED):
                yield lab, f"attempt {row.attempt} {row.outcome} by run {row.run}, which the witness did not see"


@rule
def completed_twice(facts: Facts) -> Iterator[tuple[int, str]]:
    """A completion counts once."""
    for lab in facts.jobs:
        succeeded = facts.succeeded_runs(lab)
        if len(succeeded) > 1:
            yield lab, f"{len(succeeded)} runs succeeded: {', '.join(succeeded)}"


@rule
def succeeded_without_a_run(facts: Facts) -> Iterator[tuple[int, str]]:
    """Whose row says succeeded has come to its end before the witness."""
    ended = {run.run for run in _runs(facts) if run.ended is not None}
    for lab, jobs in facts.jobs.items():
        if any(job.status == "succeeded" for job in jobs):
            runs = facts.succeeded_runs(lab)
            # The end of a transaction that completes its job comes before the task's own.
            if not ended.intersection(runs) and lab not in facts.effects:
                yield lab, f"its row names run {runs or None}, which the witness did not see end"


@rule
def ran_again(facts: Facts) -> Iterator[tuple[int, str]]:
    """Only what was running in something that was hit may run again, or what failed, or what an operator sent."""
    for one, following in repeated(facts):
        if not excuse(facts, one, following.started):
            outcomes = ", ".join(sorted(facts.outcomes.get(one.run, set()))) or "unknown to rows"
            yield one.lab, f"run {one.run} in {one.slot} ({outcomes}) was followed by {following.run}"


@rule
def more_ran_again(facts: Facts) -> Iterator[tuple[int, str]]:
    """And no more than can have been running there: each run that was lost is charged to one strike, each strike as often as it may."""
    charged: dict[int, list[tuple[Run, Run]]] = {}
    for pair in repeated(facts):
        culprits = culprits_of(facts, pair[0], pair[1].started)
        if culprits and not _charge(facts, pair, charged, set()):
            yield pair[0].lab, f"run {pair[0].run} in {pair[0].slot} ran again, more than strikes {[one.id for one in culprits]} may cost"


def _charge(facts: Facts, pair: tuple[Run, Run], charged: dict[int, list[tuple[Run, Run]]], seen: set[int]) -> bool:
    """Charge a strike with a run; where all that may be are full, move another to one that is not (bipartite matching)."""
    for strike in culprits_of(facts, pair[0], pair[1].started):
        if strike.id in seen:
            continue
        seen.add(strike.id)
        held = charged.setdefault(strike.id, [])
        if strike.most is None or len(held) < strike.most:
            held.append(pair)
            return True
        for other in held:
            if _charge(facts, other, charged, seen):
                held.remove(other)
                held.append(pair)
                return True
    return False


def repeated(facts: Facts) -> Iterator[tuple[Run, Run]]:
    """Runs that another followed, though they had not failed, asked for no other, and no operator had sent the next."""
    for lab, runs in facts.runs.items():
        sent = facts.was_retried(lab)
        for one, following in pairwise(runs):
            outcomes = facts.outcomes.get(one.run, set())
            if not outcomes and one.raised is not None and forgotten(facts, one.raised, by=LATE):
                outcomes = FOLLOWED  # its failure may have been taken, and answered, before the failover
            if outcomes & set(FINAL) and not outcomes & FOLLOWED and sent > 0:
                sent -= 1
            elif not outcomes & FOLLOWED:
                yield one, following


@rule
def ran_after_cancel(facts: Facts) -> Iterator[tuple[int, str]]:
    """Who was told that a job is cancelled sees no start of it."""
    for lab, actions in facts.operated.items():
        for one in actions:
            if one.told_at is not None and forgotten(facts, one.told_at):
                continue
            late = [run for run in facts.runs.get(lab, []) if one.told_at is not None and run.started > one.told_at]
            if one.action == "cancel" and one.answer == "cancelled" and late:
                yield lab, f"run {late[0].run} started at {late[0].started:%X.%f}, cancelled at {one.told_at:%X.%f}"


@rule
def out_of_order(facts: Facts) -> Iterator[tuple[int, str]]:
    """A job starts after its parents have succeeded."""
    ended = {run.run: run.ended for run in _runs(facts)}
    for lab, asked in facts.asked.items():
        for parent in asked.parents if lab in facts.runs else ():
            before = [ended[run] for run in facts.succeeded_runs(parent) if ended.get(run) is not None]
            before += [run.ended for run in facts.runs.get(parent, []) if run.ended and forgotten(facts, run.ended, by=LATE)]
            if not before or facts.runs[lab][0].started < min(before):  # type: ignore[type-var]
                yield lab, f"it started at {facts.runs[lab][0].started:%X.%f}, its parent {parent} ended at {before or 'no time'}"


@rule
def beside_each_other(facts: Facts) -> Iterator[tuple[int, str]]:
    """Jobs of one serial key, or of one unique key, run one at a time; those of a serial key in the order in which they were made."""
    for name in ("serial_key", "unique_key"):
        for key, runs in _by_key(facts, name).items():
            for one, other in pairwise(sorted(runs, key=lambda run: run.started)):
                over = one.over
                if one.lab != other.lab and over is not None and other.started < over and not excuse(facts, one, other.started):
                    yield other.lab, f"{key}: it started while {one.lab} ran, which ended at {over:%X.%f}"
    first = {lab: runs[0].started for lab, runs in facts.runs.items()}
    for key, runs in _by_key(facts, "serial_key").items():
        labs = sorted({run.lab for run in runs}, key=lambda lab: facts.jobs[lab][0].seq)
        for lab, later in pairwise(labs):
            if first[later] < first[lab]:
                yield later, f"{key}: it started before {lab}, which was made earlier"


@rule
def over_the_limit(facts: Facts) -> Iterator[tuple[int, str]]:
    """No more run at once than their limit lets, but what a hit worker still does with a job that was taken from it."""
    runs = [run for run in _runs(facts) if facts.jobs.get(run.lab) and facts.jobs[run.lab][0].task == "lab.limited"]
    alive: list[Run] = []
    for run in sorted(runs, key=lambda run: run.started):
        alive = [one for one in alive if one.over is not None and one.over > run.started and not excuse(facts, one, run.started)]
        alive.append(run)
        if len(alive) > LIMIT:
            yield run.lab, f"it ran beside {[one.lab for one in alive[:-1]]}, the limit is {LIMIT}"


LIMIT = 2  # as world.py sets it


@rule
def faster_than_its_rate(facts: Facts) -> Iterator[tuple[int, str]]:
    """Since the first was asked for, no more have begun than its rate lets.

    A claim is not awaited on disk, so a crash may forget the tokens of its last moment; what a failover forgets nobody knows.
    """
    labs = [lab for lab, jobs in facts.jobs.items() if jobs[0].task == "lab.rated" and lab in facts.runs]
    if not labs or any(strike.tail for strike in facts.strikes):
        return
    burst = BURST * (1 + sum(_is_crash(strike) for strike in facts.strikes))
    since = min(facts.asked[lab].asked_at for lab in labs if lab in facts.asked)
    starts = sorted((min(run.started for run in facts.runs[lab]), lab) for lab in labs)
    for number, (at, lab) in enumerate(starts, 1):
        if number > burst + RATE * (at - since).total_seconds():
            yield lab, f"it is the {number}th that began {(at - since).total_seconds():.2f} s after the first was asked for"


RATE, BURST = 2, 2  # as world.py sets them
CRASHES = ("postgres-", "disk-", "failover-")  # in the names of what may crash Postgres


@rule
def wrong_effect(facts: Facts) -> Iterator[tuple[int, str]]:
    """With transactional completion the effect is exactly once, and it is that of the run that counts."""
    for lab, jobs in facts.jobs.items():
        if jobs[0].task != "lab.transfer":
            continue
        effects, succeeded = facts.effects.get(lab, []), facts.succeeded_runs(lab)
        if sorted(effects) != sorted(succeeded) or (jobs[0].status == "succeeded") != (len(effects) == 1):
            yield lab, f"it is {jobs[0].status} by run {succeeded}, effects are of {effects}"


@rule
def left_in_the_broker(facts: Facts) -> Iterator[tuple[None, str]]:
    """When no job lives, workers have thrown away every message."""
    if facts.messages is None:
        yield None, "the broker cannot be asked, though every fault is mended"
    elif facts.messages:
        yield None, f"{facts.messages} messages are left in the broker, and no job waits for them"


@rule
def ended_by_itself(facts: Facts) -> Iterator[tuple[None, str]]:
    """A fault elsewhere ends no process of ours."""
    for slot, status, log in facts.ends:
        yield None, f"{slot} ended by itself with status {status}: {log}"


def excuse(facts: Facts, run: Run, until: Any) -> bool:
    """Whether a strike may have cost this run."""
    return bool(culprits_of(facts, run, until))


def culprits_of(facts: Facts, run: Run, until: Any) -> list[Strike]:
    """Strikes that may have cost this run: it was under way in a worker that was hit, before another took its place at `until`.

    It was in the very process that was hit, where that is known. An order that nobody obeyed costs nothing.
    """
    slack = timedelta(seconds=facts.slack)
    return [
        strike
        for strike in facts.strikes
        if run.slot in strike.again
        and (strike.pids is None or run.pid in strike.pids)
        and strike.became != "missed"
        and strike.at <= until
        and (strike.mended_at is None or run.started <= strike.mended_at + slack)
    ]


def _crashed(facts: Facts, since: datetime, until: datetime) -> bool:
    """Whether Postgres may have forgotten what it had not awaited on disk between two moments, or shortly before or after."""
    slack = timedelta(seconds=facts.slack)
    return any(_is_crash(one) and one.at - slack <= until and since <= (one.mended_at or one.at) + slack for one in facts.strikes)


def _is_crash(strike: Strike) -> bool:
    return any(word in strike.fault for word in CRASHES)


def _in_a_tail(facts: Facts, lab: int) -> bool:
    """Whether it was committed in the tail of an asynchronous failover, or waits for what was."""
    asked = facts.asked[lab]
    return forgotten(facts, asked.told_at) or any(parent in facts.asked and _in_a_tail(facts, parent) for parent in asked.parents)


def forgotten(facts: Facts, at: datetime, *, by: float = 0.0) -> bool:
    """Whether what was committed then may be gone: since an asynchronous failover began, whose standby has all that came before.

    Args:
        facts: what is known.
        at: when it was told.
        by: seconds by which the commit may have come later.
    """
    late = timedelta(seconds=by)
    return any(one.tail and one.at <= at + late and (one.mended_at is None or at <= one.mended_at) for one in facts.strikes)


def _runs(facts: Facts) -> Iterator[Run]:
    for runs in facts.runs.values():
        yield from runs


def _by_key(facts: Facts, name: str) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for lab, jobs in facts.jobs.items():
        if (key := getattr(jobs[0], name)) is not None:
            found.setdefault(key, []).extend(facts.runs.get(lab, []))
    return found


def _status(facts: Facts, lab: int) -> str | None:
    jobs = facts.jobs.get(lab)
    return jobs[0].status if jobs else None
