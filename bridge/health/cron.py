"""The state of pg_cron, from not there to working."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.health.finding import Finding, error, ok, one_line, skipped, warning
from bridge.queries import health

if TYPE_CHECKING:
    from bridge.health.subject import Subject
    from bridge.queries.health import Cron, CronEntry

__all__ = ["pg_cron"]

_RESTARTS_ITSELF = (1, 6)  # the first version whose launcher comes back
_TICK = "bridge-tick-"


def pg_cron(subject: Subject) -> Finding:
    """Without it a drainer ticks, which is fine; where it is installed, it should work."""
    state = health.cron(subject.postgres)
    if state.version is None:
        return _absent(state)
    if not state.usable:
        return skipped(
            "pg_cron",
            f"pg_cron {state.version} is installed, this role may not look into it",
            f"grant usage on schema cron to {state.role}",
        )
    if not state.launcher:
        return _launcher_dead(state.version)
    return _entries(state, health.cron_entries(subject.postgres))


def _absent(state: Cron) -> Finding:
    if not state.available:
        return ok("pg_cron", "not on this server: the drainer ticks")
    if not state.loaded_for:
        return ok(
            "pg_cron", "on this server, not loaded as far as this role sees: the drainer ticks",
            remedy=f"to change that: shared_preload_libraries = 'pg_cron' and cron.database_name = '{state.database}', a restart, "
            "create extension pg_cron, bridge install",
        )  # fmt: skip
    if state.loaded_for != state.database:
        return ok("pg_cron", f"bound to database {state.loaded_for} (cron.database_name), not to {state.database}: the drainer ticks")
    return ok(
        "pg_cron", "available, not created: the drainer ticks", remedy="to change that: create extension pg_cron, then bridge install"
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
    missing = {f"{_TICK}{state.database}", f"bridge-cleanup-{state.database}"} - {entry.name for entry in entries}
    if missing:
        return warning(
            "pg_cron",
            f"pg_cron {state.version} runs, without the entries {', '.join(sorted(missing))} (or they belong to another role)",
            "bridge install",
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
