"""compose.yaml, as far as it can be judged without a Docker engine."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
import yaml
from fix_servers import ROOT

COMPOSE = ROOT / "compose.yaml"
OURS = ("install", "drainer", "worker", "flower")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services with anchors resolved."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def test_the_file_is_valid_by_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_port_is_on_loopback(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_is_waited_for_can_become_true(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, need in service.get("depends_on", {}).items():
            assert need["condition"] != "service_healthy" or "healthcheck" in services[name]
            assert need["condition"] != "service_completed_successfully" or services[name]["restart"].startswith("on-failure")


def test_postgres_ticks_by_pg_cron_in_the_database_that_the_processes_use(services: dict[str, Any]) -> None:
    postgres = services["postgres"]
    database = postgres["environment"]["POSTGRES_DB"]
    assert "postgresql-17-cron" in postgres["build"]["dockerfile_inline"]
    assert {"shared_preload_libraries=pg_cron", f"cron.database_name={database}", "cron.use_background_workers=on"} <= set(
        postgres["command"]
    )
    for name in OURS:
        assert services[name]["environment"]["BRIDGE_DATABASE_URL"].endswith(f"/{database}")


def test_the_image_copies_only_files_that_exist(services: dict[str, Any]) -> None:
    lines = services["worker"]["build"]["dockerfile_inline"].splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("service", OURS)
def test_every_command_of_ours_exists_with_its_options(service: str, services: dict[str, Any]) -> None:
    command = services[service]["command"]
    words = [word for word in command if not word.startswith("--")]
    assert words[0] in {point.name for point in entry_points(group="console_scripts")}
    done = subprocess.run([sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Flower's own help leaves out what Tornado parses for it.
    known = flower_options() if service == "flower" else done.stdout
    assert [word for word in command if word.startswith("--") and word.partition("=")[0] not in known] == []


def flower_options() -> str:
    import flower.options  # noqa: F401 - defines them
    from tornado.options import options

    return " ".join(f"--{name}" for name in options)
