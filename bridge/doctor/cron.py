"""The state of pg_cron, from not there to working."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok, one_line, skipped, warning
from bridge.queries import cron, health

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject
    from bridge.queries.cron import Cron, CronEntry
    from bridge.queries.health import Tick

__all__ = ["pg_cron"]

_RESTARTS_ITSELF = (1, 6)  # the first version whose launcher comes back
_TICK = "bridge-tick-"
_LATE = 90.0  # seconds: before 1.5 an entry begins with the minute


def pg_cron(subject: Subject) -> Finding:
    """Without it a drainer ticks, which is fine; where it is installed, it should work."""
    state = cron.state(subject.postgres)
    if state.version is None:
        return _absent(state, health.tick_state(subject.postgres))
    if state.lacks is not None:
        return skipped("pg_cron", f"pg_cron {state.version} is installed, this role may not look into it", state.lacks)
    if not state.launcher:
        return _launcher_dead(state.version)
    strays = cron.strays(subject.postgres)
    if strays:
        return warning(
            "pg_cron",
            f"pg_cron {state.version} has entries too many: {'; '.join(f'{stray.name}: {stray.why}' for stray in strays)}",
            "; ".join(f"select cron.unschedule({stray.job})" for stray in strays),
        )
    return _entries(state, cron.entries(subject.postgres))


def _absent(state: Cron, tick: Tick) -> Finding:
    if not state.available:
        return ok("pg_cron", "not on this server: the drainer ticks")
    if state.loaded_for == state.database:
        return ok(
            "pg_cron", "available, not created: the drainer ticks", remedy="to change that: create extension pg_cron, then bridge install"
        )
    if tick.source == "pg_cron":
        return _ticked_from_elsewhere(state, tick)
    if state.loaded_for:
        return ok(
            "pg_cron", f"bound to database {state.loaded_for} (cron.database_name), not to {state.database}: the drainer ticks",
            remedy=f"to change that: bridge install --cron-database {state.loaded_for}",
        )  # fmt: skip
    return ok(
        "pg_cron", "on this server, not loaded as far as this role sees: the drainer ticks",
        remedy=f"to change that: shared_preload_libraries = 'pg_cron' and cron.database_name = '{state.database}', a restart, "
        "create extension pg_cron, bridge install",
    )  # fmt: skip


def _ticked_from_elsewhere(state: Cron, tick: Tick) -> Finding:
    home = state.loaded_for or "named by cron.database_name"
    late = tick.age is None or tick.age > max(_LATE, 3 * tick.interval)
    if not late:
        return ok("pg_cron", f"pg_cron of database {home} ticks this one")
    return warning(
        "pg_cron",
        f"pg_cron of database {home} ticked this one {tick.age or 0:.0f} s ago, and no more"
        + ("" if state.launcher else ": its launcher does not run"),
        f"see there cron.job (is the entry for {state.database} active) and the newest of cron.job_run_details; "
        "before pg_cron 1.6 a dead launcher needs a restart of Postgres",
    )


def _launcher_dead(version: str) -> Finding:
    if _numbers(version) < _RESTARTS_ITSELF:
        return error(
            "pg_cron", f"the launcher of pg_cron {version} is dead and stays so: no entry runs",
            "restart Postgres (before 1.6 nothing else brings it back), and think of an upgrade; until then a drainer ticks",
        )  # fmt: skip
    return error(
        "pg_cron", f"the launcher of pg_cron {version} does not run: no entry runs",
        "it comes back within seconds by itself; if not, see the server's log and cron.database_name",
    )  # fmt: skip


def _entries(state: Cron, entries: list[CronEntry]) -> Finding:
    missing = {"tick", "cleanup"} - {entry.name.split("-")[1] for entry in entries}
    if missing:
        names = ", ".join(f"bridge-{kind}-{state.database}" for kind in sorted(missing))
        return warning(
            "pg_cron", f"pg_cron {state.version} runs, without the entries {names} (or they belong to another role)", "bridge install"
        )
    off = [entry for entry in entries if not entry.active]
    if off:
        again = "; ".join(f"select cron.alter_job({entry.job}, active => true)" for entry in off)
        return warning("pg_cron", f"pg_cron {state.version} runs, switched off: {', '.join(entry.name for entry in off)}", again)
    failed = [entry for entry in entries if entry.last_status == "failed"]
    if failed:
        return _failing(failed)
    shown = ", ".join(f"{entry.name} ({entry.schedule})" for entry in entries)
    return ok("pg_cron", f"pg_cron {state.version} runs {shown}", value=float(sum(entry.failures for entry in entries)))


def _failing(failed: list[CronEntry]) -> Finding:
    worst = max(failed, key=lambda entry: entry.name.startswith(_TICK))
    words = one_line(worst.last_message)
    remedy = "see cron.job_run_details, order by runid desc; repeat the entry's command by hand as its user"
    if "connection failed" in words or "startup timeout" in words:
        remedy = (
            "cron.use_background_workers = on and enough max_worker_processes, then a restart; or let pg_hba.conf admit the entry's user"
        )
    return error(
        "pg_cron", f"the last run of {worst.name} failed {worst.last_age or 0:.0f} s ago: {words}", remedy, value=float(worst.failures)
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))
