"""What `bridge health` and `bridge alerts` print, do and answer with their exit codes, and the same from Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

import bridge
from bridge import client
from bridge.cli import main
from bridge.errors import InvalidArgumentError, NotFoundError, WrongStateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session

URL = "https://ops.example.org/hooks"


@pytest.fixture(autouse=True)
def _of_this_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    client.forget_connections()
    yield
    client.forget_connections()


def run(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def listed(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def dead_letter(db: Session) -> None:
    db.enqueue(max_attempts=1)
    db.fail(*db.run(), "torn")


def test_health_answers_one_while_something_fails(db: Session) -> None:
    failing = run("health", "--json")
    assert failing.exit_code == 1
    assert {row["component"] for row in json.loads(failing.stdout) if row["status"] == "failing"} == {"tick", "drainer"}
    db.tick()
    db.do("select bridge.report_drainer(%s, 'here:1', 1, 'test', 0, clock_timestamp())", db.drainer)
    well = run("health")
    assert well.exit_code == 0
    assert well.stdout.splitlines()[0].split("\t")[:5] == ["component", "subject", "status", "found", "remedy"]
    assert {line.split("\t")[2] for line in well.stdout.splitlines()[1:]} == {"healthy", "inactive"}
    assert [row["component"] for row in bridge.health() if row["status"] == "failing"] == []


def test_an_alert_is_listed_answered_and_ended(db: Session) -> None:
    dead_letter(db)
    assert listed("alerts", "check") == {"opened": 1, "unresolved": 1}
    (alert,) = listed("alerts", "list")
    assert (alert["rule"], alert["state"], alert["value"], alert["threshold"]) == ("dead_letters", "open", 1.0, 0.0)
    assert listed("alerts", "ack", alert["id"], "--who", "anna", "--note", "at it") == {"id": alert["id"], "outcome": "acknowledged"}
    assert run("alerts", "ack", alert["id"]).stdout == f"alert {alert['id']} was acknowledged already\n"
    assert run("alerts", "list").stdout.splitlines()[1].split("\t")[:4] == [str(alert["id"]), "dead_letters", "warning", "acknowledged"]
    assert run("alerts", "resolve", alert["id"], "--note", "seen").stdout == f"alert {alert['id']} resolved\n"
    assert listed("alerts", "list") == []
    assert [row["note"] for row in listed("alerts", "list", "--all", "--rule", "dead_letters")] == ["seen"]
    assert [row["state"] for row in listed("alerts", "list", "--state", "resolved")] == ["resolved"]
    refused = run("alerts", "ack", alert["id"])
    assert (refused.exit_code, refused.stderr[:6]) == (1, "error:")


def test_a_rule_is_made_changed_tried_and_removed(db: Session) -> None:
    made = ("alerts", "set", "late", "queue_age", "-Q", "mail", "--threshold", 60, "--lasting", "2m", "--quiet", "1h", "--webhook", URL)
    assert run(*made).stdout == "late created\n"
    assert run(*made).stdout == "late unchanged\n"
    assert run("alerts", "set", "late", "--disable", "--severity", "info").stdout == "late changed\n"
    (rule,) = [row for row in listed("alerts", "rules") if row["name"] == "late"]
    assert {name: rule[name] for name in ("kind", "queue", "threshold", "lasting", "quiet", "severity", "enabled", "webhook")} == {
        "kind": "queue_age", "queue": "mail", "threshold": 60.0, "lasting": 120.0, "quiet": 3600.0, "severity": "info", "enabled": False,
        "webhook": URL,
    }  # fmt: skip
    assert "late is told" in run("alerts", "test", "late").stdout
    assert "late_tick has no address" in run("alerts", "test", "late_tick").stdout
    assert db.rows("select callback, event, target from bridge.deliveries") == [("alert late", "alert.test", URL)]
    assert run("alerts", "remove", "late").stdout == "late removed\n"
    assert run("alerts", "remove", "late").exit_code == 1
    assert "give one of breaker_open, broker_trouble" in run("alerts", "set", "x", "y").stderr
    assert any(line.split("\t")[:2] == ["queue_age", "queue_age"] for line in run("alerts", "rules").stdout.splitlines())


def test_python_says_the_same_by_the_same_names(db: Session) -> None:
    assert bridge.set_alert("late", "queue_age", 60, queue="mail", lasting=30, webhook=URL) == "created"
    assert bridge.set_alert("late", lasting=30.0) == "unchanged"
    assert bridge.set_alert("late", webhook="", notifier="ops") == "changed"
    (rule,) = [row for row in bridge.alert_rules() if row["name"] == "late"]
    assert (rule["webhook"], rule["notifier"], rule["lasting"].total_seconds()) == (None, "ops", 30)
    bridge.test_alert("late")
    assert db.rows("select target from bridge.deliveries") == [("ops",)]
    bridge.remove_alert("late")
    with pytest.raises(NotFoundError):
        bridge.remove_alert("late")
    with pytest.raises(InvalidArgumentError, match=r"severity is 'bad': give info, warning or critical"):
        bridge.set_alert("queue_age", severity="bad")
    dead_letter(db)
    assert bridge.check_alerts() == {"opened": 1, "unresolved": 1}
    (alert,) = bridge.alerts()
    assert bridge.acknowledge_alert(alert["id"], "anna")
    assert not bridge.acknowledge_alert(alert["id"])
    bridge.resolve_alert(alert["id"])
    assert (bridge.alerts(), [row["acknowledged_by"] for row in bridge.alerts(None)]) == ([], [db.connection.info.user])
    with pytest.raises(WrongStateError):
        bridge.resolve_alert(alert["id"])
