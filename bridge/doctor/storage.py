"""What makes Postgres slow or full for the queue: old snapshots, connections, missing days."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok, skipped, warning
from bridge.queries import health

if TYPE_CHECKING:
    from bridge.doctor.limits import Limits
    from bridge.doctor.subject import Subject
    from bridge.queries.health import Holder

__all__ = ["connections", "days", "snapshots", "upkeep"]

_NEARLY_ALL = 0.95  # of the connections: the next drainer or worker may not get in


def snapshots(subject: Subject) -> Finding:
    """Rows of a queue live seconds; one old snapshot keeps all of them, dead, in the way of every claim."""
    holders = health.snapshot_holders(subject.postgres)
    bad = [holder for holder in holders if _hurts(holder, subject.limits)]
    if bad:
        words = "; ".join(f"{holder.what} for {holder.age:.0f} s" if holder.age is not None else holder.what for holder in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""  # noqa: PLR2004
        return warning("snapshots", words + more, _remedies(bad), value=max((holder.age or 0.0 for holder in bad), default=0.0))
    if not health.may_see_sessions(subject.postgres):
        return skipped("snapshots", "this role does not see other roles' sessions", "grant pg_read_all_stats to it")
    oldest = max((holder.age or 0.0 for holder in holders), default=0.0)
    return ok("snapshots", f"the oldest transaction that keeps dead rows is {oldest:.0f} s old", value=oldest)


def _hurts(holder: Holder, limits: Limits) -> bool:
    if holder.kind == "slot":
        return not holder.active or holder.lag > limits.slot_lag
    return (holder.age or 0.0) > limits.snapshot_age


def _remedies(bad: list[Holder]) -> str:
    kinds = {holder.kind: holder for holder in reversed(bad)}
    words = {
        "session": "select pg_terminate_backend({}); idle_in_transaction_session_timeout ends such sessions by itself",
        "prepared": "rollback prepared {} (or commit prepared), in its database",
        "slot": "start what reads the slot, or: select pg_drop_replication_slot({})",
    }
    return "; ".join(words[kind].format(kinds[kind].handle) for kind in words if kind in kinds)


def connections(subject: Subject) -> Finding:
    """Each worker child, heartbeat and drainer holds one."""
    used, most = health.connections(subject.postgres)
    share = used / most
    found = f"{used} of {most} in use"
    remedy = "raise max_connections, end idle sessions, or put a pooler between (drainers then need BRIDGE_POLL instead of NOTIFY)"
    if share > max(_NEARLY_ALL, subject.limits.connections_used):
        return error("connections", found, remedy, value=share)
    if share > subject.limits.connections_used:
        return warning("connections", found, remedy, value=share)
    return ok("connections", found, value=share)


def days(subject: Subject) -> Finding:
    """A job that ends on a day without a partition cannot be stored; its worker makes the day, if it may."""
    missing, detaching = health.missing_days(subject.postgres, subject.limits.days_ahead)
    if missing:
        found = f"no partition for {', '.join(f'{table} on {day:%Y-%m-%d}' for table, day in missing[:4])}"
        today = health.server(subject.postgres).clock.astimezone(UTC).date()
        tell = error if any(day == today for _, day in missing) else warning
        return tell("days", found, "select bridge.make_days(); the tick does that every hour: see the row tick", value=float(len(missing)))
    if detaching:
        parent, child = detaching[0]
        return warning(
            "days", f"half detached: {', '.join(name for _, name in detaching)}",
            f"alter table {parent} detach partition {child} finalize", value=float(len(detaching)),
        )  # fmt: skip
    return ok("days", f"today and the next {subject.limits.days_ahead} days have theirs", value=0.0)


def upkeep(subject: Subject) -> Finding:
    """What grows without need or ends badly one day; what holds snapshots is told by `snapshots`."""
    advice = [row for row in health.advice(subject.postgres) if row.kind not in {"snapshot", "prepared", "slot"}]
    if not advice:
        return ok("upkeep", "cleanups go well, indexes and settings of tables are in order", value=0.0)
    more = f"; and {len(advice) - 1} more, see: bridge cleanup advice" if len(advice) > 1 else ""
    worst = advice[0]
    if worst.severity == "info":
        return ok("upkeep", worst.found + more, remedy=worst.remedy, value=float(len(advice)))
    tell = error if worst.severity == "error" else warning
    return tell("upkeep", worst.found + more, worst.remedy, value=float(len(advice)))
