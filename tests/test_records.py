"""Lines of our logs: words and fields for programs, and no secret in any of them."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import wait_until

from bridge.local.broker import free_port
from bridge.records import Fields, JsonFormatter, Secrets, TextFormatter

if TYPE_CHECKING:
    from fix_servers import Launcher

PLANTED = {
    "BRIDGE_WEBHOOK_SECRET_SHOP": "hook-5ecret", "BRIDGE_NOTIFIER_OPS": "slack://to/ken-5ecret", "BRIDGE_WEB_TOKEN": "web-5ecret",
    "PGPASSWORD": "pg-5ecret",
}  # fmt: skip
DATABASE, BROKER = "postgresql://me:d%405ecret@127.0.0.1:{port}/x", "redis://:br-5ecret@127.0.0.1:{port}/0"
SECRETS = Secrets(PLANTED, DATABASE, BROKER)


def line(message: object, *args: Any, **extra: Any) -> dict[str, Any]:
    """What the JSON form makes of a line."""
    record = logging.getLogger("bridge.test").makeRecord("bridge.test", logging.INFO, "f", 1, message, args, None, extra=extra)  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(JsonFormatter(SECRETS).format(record))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert (found.pop("level"), found.pop("logger")) == ("info", "bridge.test")
    return found


def test_words_and_fields_of_a_line_are_taken_apart() -> None:
    number = uuid.uuid4()
    assert line("published queue=%s jobs=%d shipment=%s", "mail", 3, number) == {
        "message": "published", "queue": "mail", "jobs": 3, "shipment": str(number)}  # fmt: skip
    assert line("outage pause=%.1f error=%s", 0.25, ValueError("gone, see page=7")) == {
        "message": "outage", "pause": 0.25, "error": "gone, see page=7"}  # fmt: skip
    assert line("ticked %s", Fields({"due": 2, "lost": 1})) == {"message": "ticked", "due": 2, "lost": 1}
    assert line("tried %d of %d times, 100%% of job=%s", 1, 2, None) == {"message": "tried 1 of 2 times, 100% of", "job": None}
    assert line("stopped", job_id="7") == {"message": "stopped", "job_id": "7"}
    assert line("100% sure") == {"message": "100% sure"}
    # What cannot be taken apart is told as a whole, and a field never takes the place of what every line has.
    assert line("%(name)s came", {"name": "a"}) == {"message": "a came"}
    assert line(ValueError("x")) == {"message": "x"}
    assert line("odd level=%s", "loud") == {"message": "odd"}


@pytest.mark.parametrize(
    "secret", ["hook-5ecret", "slack://to/ken-5ecret", "web-5ecret", "pg-5ecret", "d%405ecret", "d@5ecret", "br-5ecret"]
)
def test_no_form_of_a_line_shows_a_secret_of_the_environment(secret: str) -> None:
    told = f"refused by {secret}, and by it"
    assert "5ecret" not in json.dumps([line("failed error=%s", told), line(told), line("failed", header=told)])
    try:
        raise ValueError(told)  # noqa: TRY301 - to have it caught
    except ValueError:
        record = logging.getLogger().makeRecord("bridge", logging.ERROR, "f", 1, "failed error=%s", (told,), sys.exc_info())
    assert "5ecret" not in TextFormatter(SECRETS).format(record)
    assert "5ecret" not in JsonFormatter(SECRETS).format(record)


def test_addresses_of_others_are_shown_without_their_passwords() -> None:
    hidden = Secrets({}).hide("amqp://ann:s3cr3t/x@host:1/v and postgresql://h/d?password=abc&x=1 and host=h password='a b' user=u")
    assert hidden == "amqp://ann:***@host:1/v and postgresql://h/d?password=***&x=1 and host=h password=*** user=u"


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_ends_a_command_is_told_in_the_form_of_its_log(launcher: Launcher, form: str) -> None:
    process = launcher.start(
        "tick",
        [sys.executable, "-m", "bridge", "tick"],
        {"BRIDGE_LOG_FORMAT": form},
        dsn=DATABASE.format(port=free_port()),
        broker_url=BROKER,
    )
    assert process.wait(20.0) == 1
    text = process.log_text().strip()
    if form == "text":
        assert text.startswith("error: cannot reach postgresql://me:***@")
    else:
        told = json.loads(text)
        assert (told["level"], told["logger"]) == ("error", "bridge")
        assert told["message"].startswith("cannot reach postgresql://me:***@")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_drainer_that_reaches_nothing_tells_no_password(launcher: Launcher, form: str) -> None:
    urls = {"dsn": DATABASE.format(port=free_port()), "broker_url": BROKER.format(port=free_port())}
    env = {**PLANTED, "BRIDGE_LOG_FORMAT": form, "BRIDGE_LOG_LEVEL": "debug"}
    process = launcher.start("drainer", [sys.executable, "-m", "bridge", "drain"], env, **urls)
    wait_until(lambda: "outage" in process.log_text(), 30.0, "an outage")
    text = process.log_text()
    assert "cannot reach" in text
    assert "5ecret" not in text
    if form == "json":
        assert {"time", "level", "logger", "message"} <= set(json.loads(text.splitlines()[0]))
