"""The page on monitoring: its statements run, and its tables have what there is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fix_servers import ROOT

if TYPE_CHECKING:
    from fix_sql import Session

PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table whose head begins so."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_its_statements_run(db: Session) -> None:
    statements = [
        text for block in re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for text in block.split(";\n") if text.strip()
    ]
    assert len(statements) > 5
    for statement in statements:
        db.do(statement)
    assert db.rows("select kind, threshold, webhook from bridge.alert_rules where name = 'alert-stuck-jobs'") == [
        ("queued_jobs", 100, "https://ops.example.org/hooks")
    ]


def test_it_names_each_component_of_health(db: Session) -> None:
    db.enqueue()
    db.do("select bridge.report_drainer(%s, 'here:1', 1, 'test', 0, clock_timestamp())", db.drainer)
    named = {row[0].strip("`") for row in rows_after("| component | one row for |")}
    assert named == {row[0] for row in db.rows("select component from bridge.health()")}


def test_it_names_each_kind_with_its_threshold_and_severity(db: Session) -> None:
    kinds = {row[0].strip("`"): (row[1], row[-1]) for row in rows_after("| kind | fires above |")}
    found = {row[0]: row[1:] for row in db.rows("select kind, threshold, severity from bridge.alert_kinds()")}
    assert kinds.keys() == found.keys()
    for kind, (threshold, severity) in kinds.items():
        number = 86400 if "1 day" in threshold else float(re.sub(r"[^\d.]", " ", threshold).split()[0])
        assert (kind, number, severity) == (kind, float(found[kind][0]), found[kind][1])
