"""All checks in the order of the report, and running them so that one that fails does not take the others along."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge.doctor import breakers, broker, callbacks, cron, database, jobs, processes, schedules, storage, ticking
from bridge.doctor.finding import Finding, error, from_exception, skipped
from bridge.doctor.limits import Limits
from bridge.doctor.subject import NoAnswerError, Subject, within
from bridge.errors import SettingError
from bridge.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from bridge.settings import Settings

__all__ = ["CHECKS", "Check", "examine"]

_SLACK = 2.0  # seconds more than the servers' own time limits have: their words say more than ours


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        look: does it.
        about: what it answers.
        needs: checks that must have reached their server.
    """

    look: Callable[[Subject], Finding]
    about: str
    needs: tuple[str, ...] = ()


_SCHEMA = ("database", "schema")
CHECKS: dict[str, Check] = {
    "database": Check(database.reachable, "does Postgres answer, and can it be written to"),
    "schema": Check(database.schema, "does the installed schema fit this process", ("database",)),
    "tick": Check(ticking.tick, "who ticks, and how late", _SCHEMA),
    "pg_cron": Check(cron.pg_cron, "is pg_cron there, does it work on our entries", _SCHEMA),
    "drainers": Check(processes.drainers, "does a drainer publish", _SCHEMA),
    "workers": Check(processes.workers, "do workers report, for each queue in use", _SCHEMA),
    "broker": Check(broker.reachable, "does the broker answer, and keep what it is given"),
    "plugin": Check(processes.plugin, "do workers run without our plugin", ("database", "schema", "broker")),
    "refused": Check(processes.refused, "have workers refused messages that are not signed", _SCHEMA),
    "queued": Check(jobs.queued, "how long has the oldest due job waited for a drainer", _SCHEMA),
    "stuck": Check(jobs.stuck, "have jobs been queued, published or running for too long", _SCHEMA),
    "schedules": Check(schedules.due, "are schedules late, did their last run fail, are they slow, or run too often", _SCHEMA),
    "breakers": Check(breakers.tripped, "does a circuit breaker hold a queue or task back", _SCHEMA),
    "callbacks": Check(callbacks.undelivered, "have webhooks or notifications not arrived in all their attempts", _SCHEMA),
    "clocks": Check(processes.clocks, "do the clocks agree with the database's", _SCHEMA),
    "graces": Check(processes.graces, "do heartbeat, republish_grace and worker_lost fit each other", _SCHEMA),
    "bundles": Check(processes.bundles, "do tasks that ask to be bundled have what keeps them from it", _SCHEMA),
    "snapshots": Check(storage.snapshots, "does something keep dead rows from being vacuumed", ("database",)),
    "connections": Check(storage.connections, "how many connections of the server are in use", ("database",)),
    "upkeep": Check(storage.upkeep, "do cleanups go well, are indexes and settings of tables in order", _SCHEMA),
    "days": Check(storage.days, "are there partitions for the jobs that end in the coming days", _SCHEMA),
}


def examine(
    settings: Settings | None = None,
    limits: Limits | None = None,
    *,
    names: Collection[str] = (),
    timeout: float | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Finding]:
    """Make the checks. Nothing is changed anywhere, nothing is raised: what fails is a row.

    Args:
        settings: where the servers are; None reads the environment.
        limits: from where on a check is not satisfied.
        names: only these of `CHECKS`, and what they need; empty for all.
        timeout: seconds that a server may take to answer; None takes the settings'.
        now: this machine's clock.

    Returns:
        One finding a check, in the order of `CHECKS`; a check whose server was not reached is skipped and says so.
    """
    if settings is None:
        try:
            settings = load()
        except SettingError as problem:
            reason = "needs settings, which are wrong"
            return [from_exception("settings", problem), *(skipped(name, reason) for name in _chosen(names))]
    if timeout is not None:
        settings = settings.model_copy(update={"timeout": timeout})
    subject = Subject(settings, limits or Limits(), now)
    try:
        return [_run(name, subject) for name in _chosen(names)]
    finally:
        _let_go(subject)


def _chosen(names: Collection[str]) -> Iterator[str]:
    needed = {need for name in names for need in CHECKS[name].needs}
    return (name for name in CHECKS if not names or name in names or name in needed)


def _run(name: str, subject: Subject) -> Finding:
    check = CHECKS[name]
    reached = {"database": subject.connection is not None, "schema": subject.schema_fits, "broker": subject.broker is not None}
    for need in check.needs:
        if not reached[need]:
            return skipped(name, f"needs {need}, see there")
    try:
        return within(subject.settings.timeout + _SLACK, lambda: check.look(subject))
    except NoAnswerError as problem:
        _give_up(check, subject)
        return from_exception(name, problem)
    except PermissionError as problem:
        return skipped(name, str(problem), "ask as the role that installed the schema, or grant this one what it lacks")
    except Exception as problem:  # noqa: BLE001 - a broken server may answer anything; the other checks go on
        return _failed(name, subject, problem)


def _failed(name: str, subject: Subject, problem: Exception) -> Finding:
    if subject.connection is not None and subject.connection.closed:
        subject.connection = None
        return error(name, "the database went away during this check", "see its log; then run the doctor again")
    return from_exception(name, problem)


def _give_up(check: Check, subject: Subject) -> None:
    """The hung call may still use what it used: nobody else touches that again."""
    if "broker" in check.needs:
        subject.broker = None
    subject.connection, subject.schema_fits = None, False


def _let_go(subject: Subject) -> None:
    if subject.connection is not None:
        subject.connection.close()
    if subject.broker is not None:
        with suppress(Exception):  # it may have gone away; all is said already
            within(subject.settings.timeout, subject.broker.close)
