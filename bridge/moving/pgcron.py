"""Entries of pg_cron, the table cron.job: a call of one function becomes a schedule that calls it."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from bridge.moving.call import function_schedule, parse_call, wrapped
from bridge.moving.entry import Entry, NotCarriedOverError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.moving.call import Catalog

__all__ = ["entries"]

_POST = re.compile(r"(net|extensions|public)\.http_")


def entries(rows: Iterable[Mapping[str, Any]], catalog: Catalog, timezone: str) -> list[Entry]:
    """What rows of cron.job become.

    Args:
        rows: jobid, jobname, schedule, command, username and active of each.
        catalog: the functions of the database that they run in.
        timezone: whose clock pg_cron reads expressions by.
    """
    found = [_entry(row, catalog, timezone) for row in rows]
    count = Counter(entry.name for entry in found)
    for entry in found:
        if count[entry.name] > 1:  # a name is one of its role's there
            entry.name = f"{entry.name} ({entry.role})"
    return found


def _entry(row: Mapping[str, Any], catalog: Catalog, timezone: str) -> Entry:
    entry = Entry(row["jobname"] or f"pg_cron {row['jobid']}", role=row["username"], job=row["jobid"] if row["active"] else None)
    cron = str(row["schedule"]).strip()
    if cron.lower() == "@reboot":
        entry.refusal = "it runs when the server starts, which is no moment of a clock: leave it to pg_cron"
        return entry
    try:
        target = function_schedule(parse_call(row["command"]), catalog)
    except NotCarriedOverError as refusal:
        entry.refusal = f"{refusal}: {wrapped(entry.name, row['command'])}"
        return entry
    if cron.endswith(("second", "seconds")):
        entry.notes.append("counted from the clock, not from when pg_cron started")
    if _POST.match(target["function"]):
        entry.notes.append("what the other side answers is not looked at, as before: a --webhook is tried again until it answers")
    if not row["active"]:
        entry.notes.append("it is not active: the schedule is made as paused")
    # As pg_cron does it: no second try, what was missed stays so, and a run waits for the one before.
    entry.schedule = {
        "cron": cron, "timezone": timezone, **target, "max_attempts": 1, "missed": "skip", "overlap": "queue_one",
        **({} if row["active"] else {"enabled": False}),
    }  # fmt: skip
    return entry
