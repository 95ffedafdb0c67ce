"""Waiting for results while Postgres is away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from celery import group
from fix_servers import wait_for_row, wait_for_value

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from fix_calls import MakeApp
    from fix_servers import StartDrainer, StartWorker

    from bridge.local.postgres import PostgresServer

PATIENCE = 120  # seconds


def test_who_waits_goes_on_waiting_through_a_restart_of_postgres(
    durable_postgres: PostgresServer, redis_url: str, drainer: StartDrainer, worker: StartWorker, make_caller: MakeApp,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    go = tmp_path / "go"
    monkeypatch.setenv("BRIDGE_DATABASE_URL", durable_postgres.dsn)
    app: Any = make_caller()
    drainer(dsn=durable_postgres.dsn, broker_url=redis_url)
    process = worker("apps.results", "-Q", "celery", dsn=durable_postgres.dsn, broker_url=redis_url, env={"C_FORCE_ROOT": "1"})
    one = app.send_task("results.boast", (str(go),))
    several = group([app.signature("results.add", (1, 2)), app.signature("results.add", (3, 4), countdown=10)]).apply_async()
    wait_for_value(durable_postgres.dsn, "select status from bridge.jobs where id = %s", (one.id,), value="running", timeout=PATIENCE)

    def wait(result: Any) -> Any:
        try:
            return result.get(timeout=PATIENCE)
        finally:
            app.bridge.connections.close()  # this thread's

    with ThreadPoolExecutor(2) as others:
        waiting = [others.submit(wait, result) for result in (one, several)]
        wait_for_value(durable_postgres.dsn, "select count(*) from bridge.waiter", value=3, timeout=PATIENCE)
        durable_postgres.kill()
        go.touch()  # the run ends while Postgres is away
        assert not any(future.done() for future in waiting)
        durable_postgres.start()
        assert [future.result() for future in waiting] == ["cooked", [3, 7]]
    assert process.alive
    wait_for_row(durable_postgres.dsn, "select 1 from bridge.jobs where id = %s and attempts = 1", (one.id,), timeout=PATIENCE)
