"""The tables of django-celery-beat, made by its own migrations and models, become schedules; what cannot, says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner
from fix_servers import ROOT

from bridge.cli.schedules import schedules_command

if TYPE_CHECKING:
    from fix_sql import Session

    from bridge.testing.databases import Databases

WHY = {
    "bad": "its crontab 61 * * * * (minute, hour, weekday, day, month) cannot be read: ",
    "broken": "its args are no JSON array: ",
    "clocked": "it runs once: select bridge.enqueue('shop.work', '[\"it''s\"]', '{}', run_at => '2040-01-02T03:04:00+00:00', "
    "queue => 'mail')",
    "ended": "it ended at 2020-01-01T00:00:00+00:00 (expires)",
    "micro": "its interval is 0.0015 s: ours are whole seconds, 1 or more",
    "one off": "it runs once (one_off): enqueue its task with run_at",
    "solar": "it follows the sun (sunrise): keep it in beat, or choose a time of day",
}


def run(db: Session, *words: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    given = {"BRIDGE_DATABASE_URL": db.dsn}
    done = CliRunner().invoke(schedules_command, ["import", "--from-django", "--json", *words], env=given)
    return done, {row["name"]: row for row in json.loads(done.stdout or "[]")}


def test_periodic_tasks_of_django_are_carried_over(db: Session, databases: Databases) -> None:
    source = databases.server.dsn_of(databases.create())
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "BEAT_DSN": source, "DJANGO_SETTINGS_MODULE": "apps.django_beat.settings", "PYTHONPATH": paths}
    filled = subprocess.run([sys.executable, "-m", "apps.django_beat.fill"], env=environment, capture_output=True, text=True, check=False)
    assert filled.returncode == 0, filled.stderr
    done, _ = run(db)
    assert "give their database as --source-url" in str(done.exception)
    done, rows = run(db, "--source-url", source)
    assert done.exit_code == 1
    refused = {name: row["note"] for name, row in rows.items() if row["outcome"] == "not carried over"}
    assert set(refused) == set(WHY), refused
    assert {name: note for name, note in refused.items() if not note.startswith(WHY[name])} == {}
    columns = "name, cron, timezone, task, args, kwargs, queue, priority, max_attempts, enabled, expires::text, headers, starts_at, ends_at"
    made = {row[0]: [str(value) for value in row[1:]] for row in db.rows(f"select {columns} from bridge.schedule")}
    work, none = ["shop.work", "[]", "{}", "celery", "0", "1"], "None"
    assert made == {
        "full": [
            "*/15 8-18 1-7 * &1-5", "Europe/Berlin", "shop.work", '["it\'s", 1]', "{'a': None}", "mail", "4", "1", "True", "00:00:45",
            "{'tenant': 'x'}", "2030-01-01 00:00:00+00:00", none,
        ],
        "interval": ["every 90 minutes", "UTC", *work, "True", none, none, none, "2041-01-01 00:00:00+00:00"],
        "disabled": ["every 90 minutes", "UTC", *work, "False", none, none, none, none],
    }  # fmt: skip
    assert "option routing_key is left behind; its description is left behind; its priority is meant as RabbitMQ" in rows["full"]["note"]
    assert "in the queue celery: -A APP has it routed as the application does" in rows["interval"]["note"]
    db.do("select bridge.resume_schedule('disabled')")
    _, rows = run(db, "--source-url", source)
    assert {row["outcome"] for row in rows.values()} == {"not carried over", "unchanged"}
    words = ["bridge", "schedules", "import", "--from-django", "--json", "--dry-run", "-A", "apps.beaten", "--source-url", source]
    environment |= {"BRIDGE_DATABASE_URL": db.dsn, "BRIDGE_BROKER_URL": "redis://127.0.0.1:1/0"}
    known = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False)
    note = next(row["note"] for row in json.loads(known.stdout) if row["name"] == "full")
    assert "the application does not know this task; option routing_key is left behind; priority 4 means later than others" in note, (
        known.stderr
    )
    assert "-A APP" not in known.stdout
