"""/metrics and /health of the drainer and of `bridge web`: real processes, asked over HTTP."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner
from fix_servers import ROOT, wait_until

from bridge.cli import main
from bridge.local.broker import free_port

if TYPE_CHECKING:
    from fix_servers import Launcher, StartDrainer

    from bridge.local.broker import RedisServer
    from bridge.local.process import Process

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
SECRET = "planted-5ecret"  # noqa: S105 - it is to be hidden


def documented(heading: str) -> set[str]:
    """The names in a table of the page."""
    return set(re.findall(r"^\| `(bridge_\w+)` \|", PAGE.partition(f"## {heading}")[2].partition("\n## ")[0], re.MULTILINE))


def get(url: str, token: str | None = None, accept: str = "*/*") -> tuple[int, str]:
    """Status and text of an answer; 0 when nobody answers."""
    headers = {"Accept": accept, **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def figures(text: str) -> dict[str, dict[str, float]]:
    """Families by name, each with its samples' values by name and labels, as Prometheus' own parser reads them."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {f"{one.name}{json.dumps(one.labels)}": one.value for one in family.samples}
    return found


def serve(launcher: Launcher, *words: str, env: dict[str, str] | None = None) -> tuple[Process, str]:
    """`bridge web`, once it answers, and its address."""
    url = f"http://127.0.0.1:{free_port()}"
    process = launcher.start("web", [sys.executable, "-m", "bridge", "web", "--listen", url.rpartition("/")[2], *words], env)
    process.wait_ready(lambda: get(f"{url}/health/live")[0] == 200, 30.0)
    return process, url


def test_a_drainer_tells_its_figures_and_whether_it_works(drainer: StartDrainer, redis_server: RedisServer, dsn: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    process = drainer("--metrics-port", url.rpartition(":")[2], env={"BRIDGE_LOG_FORMAT": "json"})
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("select bridge.enqueue('a.task')")

    def published() -> dict[str, dict[str, float]]:
        found = figures(get(f"{url}/metrics")[1])
        return found if found["bridge_drainer_published_jobs_total"]["bridge_drainer_published_jobs_total{}"] == 1 else {}

    found = wait_until(published, 20.0, "one job published")
    ours = {name for name in found if name.startswith("bridge_")}
    assert ours == documented("Of the queue") | documented("Of a drainer") | {"bridge_database_up"}
    assert found["bridge_drainer_claim_seconds"]["bridge_drainer_claim_seconds_count{}"] == 1
    assert found["bridge_jobs"]['bridge_jobs{"queue": "celery", "status": "published"}'] == 1
    assert found["bridge_drainers"]['bridge_drainers{"status": "alive"}'] == 1
    assert "process_cpu_seconds_total" in found
    assert "bridge_jobs" not in figures(get(f"{url}/metrics?database=off")[1])
    status, text = get(f"{url}/health")
    assert (status, json.loads(text)["broker"]) == (200, True)
    redis_server.stop()
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("select bridge.enqueue('a.task')")
    wait_until(lambda: get(f"{url}/health")[0] == 503, 30.0, "not ready without its broker")
    assert get(f"{url}/health/live")[0] == 200
    assert get(f"{url}/nowhere")[0] == 404
    process.kill(signal.SIGTERM)
    assert process.wait(20.0) == 0
    assert get(f"{url}/health/live")[0] == 0
    lines = [json.loads(line) for line in process.log_text().splitlines()]
    said = {line["message"]: line for line in lines}
    assert said["connected to broker"]["kind"] == "redis"
    assert said["stopped"] | {"published": 1, "level": "info", "logger": "bridge.drainer"} == said["stopped"]
    assert said["outage"]["level"] == "warning"


@pytest.mark.usefixtures("dsn", "redis_url")
def test_an_address_in_use_is_told_before_anything_is_drained(drainer: StartDrainer) -> None:
    port = str(free_port())
    first = drainer(env={"BRIDGE_METRICS": port})
    second = drainer(env={"BRIDGE_METRICS": port}, ready=False)
    assert second.wait(20.0) == 1
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in second.log_text()
    assert "give another address by --metrics-port or BRIDGE_METRICS" in second.log_text()
    assert first.alive


@pytest.mark.usefixtures("redis_url")
def test_web_answers_metrics_health_and_statistics(launcher: Launcher, dsn: str) -> None:
    process, url = serve(launcher)
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("select bridge.enqueue('a.task', queue => 'mail')")
    found = {name for name in figures(get(f"{url}/metrics")[1]) if name.startswith("bridge_")}
    assert found == documented("Of the queue") | {"bridge_database_up"}
    assert json.loads(get(f"{url}/stats")[1])["queues"]["mail"]["jobs"]["queued"] == 1
    status, text = get(f"{url}/health")
    told = json.loads(text)
    with psycopg.connect(dsn) as sql:
        asked = {row[0]: row[1] for row in sql.execute("select concat_ws(' ', component, subject), status from bridge.health()")}
    assert {" ".join(filter(None, [one["component"], one["subject"]])): one["status"] for one in told["components"]} == asked
    # Nobody drains here.
    assert (status, told["status"], told["summary"]["failing"]) == (503, "failing", list(asked.values()).count("failing"))
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("select bridge.purge('mail')")
        sql.execute("select bridge.report_drainer(gen_random_uuid(), 'd', 1, 'test', 0, clock_timestamp())")
        sql.execute("select bridge.tick()")
    status, text = get(f"{url}/health")
    assert (status, json.loads(text)["summary"].get("failing", 0)) == (200, 0), text
    assert get(f"{url}/metrics", accept="application/openmetrics-text; version=1.0.0")[1].endswith("# EOF\n")
    process.kill(signal.SIGTERM)
    assert process.wait(20.0) == 0


@pytest.mark.usefixtures("dsn", "redis_url")
def test_with_a_token_nobody_reads_without_it(launcher: Launcher) -> None:
    process, url = serve(launcher, "--token-env", "SHOP_TOKEN", "--log-level", "debug", env={"SHOP_TOKEN": SECRET})
    assert [get(f"{url}{path}")[0] for path in ("/metrics", "/health", "/stats")] == [401, 401, 401]
    assert get(f"{url}/metrics", "wrong")[0] == 401
    assert get(f"{url}/metrics", SECRET)[0] == 200
    assert get(f"{url}/health/live")[0] == 200
    assert SECRET not in process.log_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["drain", "--metrics-port", "nine"], "BRIDGE_METRICS is wrong: 'nine' has no port"),
        (["web", "--token-env", "SHOP_TOKEN"], "SHOP_TOKEN is not set"),
        (["web", "--listen", "0.0.0.0:1"], "0.0.0.0 is no address of the loopback, and there is no token"),
        (["web", "--listen", "x"], "BRIDGE_WEB is wrong: 'x' has no port"),
    ],
)
def test_what_cannot_be_served_safely_is_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(main, words, env={"BRIDGE_DATABASE_URL": "dbname=x"})
    assert done.exit_code == 1
    assert said in done.output


@pytest.mark.usefixtures("dsn", "redis_url")
def test_without_postgres_the_rest_is_told(launcher: Launcher) -> None:
    away = f"host=127.0.0.1 port={free_port()} user=me password={SECRET} dbname=x"
    process, url = serve(launcher, env={"BRIDGE_DATABASE_URL": away, "BRIDGE_LOG_FORMAT": "json"})
    assert figures(get(f"{url}/metrics")[1])["bridge_database_up"] == {"bridge_database_up{}": 0}
    status, text = get(f"{url}/health")
    assert status == 503
    assert "cannot reach" in json.loads(text)["error"]
    line = next(json.loads(line) for line in process.log_text().splitlines() if "no figures" in line)
    assert line["message"] == "no figures of postgres"
    assert "cannot reach" in line["error"]
    assert SECRET not in text + process.log_text()


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    text = (ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8")
    queries = [target["expr"] for panel in json.loads(text)["panels"] for target in panel.get("targets", [])]
    known = documented("Of the queue") | documented("Of a drainer") | {"bridge_database_up"}
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for query in queries for name in re.findall(r"\bbridge_\w+", query)}
    assert len(queries) > 10
    assert used - known == set()
