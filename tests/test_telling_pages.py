"""The examples of the pages on progress and callbacks do what the pages say."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import ROOT

import bridge
from bridge.client import forget_connections
from bridge.testing import run_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_calls import MakeApp
    from fix_sql import Session


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The application of the pages, as the module that they import."""
    forget_connections()
    module = ModuleType("shop")
    module.app = make_caller()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", module)
    yield module.app
    forget_connections()


def test_the_import_goes_on_where_it_broke(shop: Any, db: Session) -> None:
    (code,) = blocks("progress-and-logs.md", "python")
    loaded: list[str] = []

    def load(page: str) -> None:
        if page == "torn" and loaded.count("torn") == 0:
            loaded.append("torn")
            raise ValueError(page)
        loaded.append(page)

    exec(code, {"load": load})  # noqa: S102 - the page's own words
    job = bridge.enqueue("shop.import_pages", [["a", "torn", "c"]], max_attempts=2, backoff=[0])
    (done,) = run_jobs(shop)
    assert (done.id, done.status, done.result) == (job, "succeeded", 3)
    assert loaded == ["a", "torn", "torn", "c"]
    assert done.progress == {"fraction": 1.0, "message": "page 2"}
    assert [(line.attempt, line.message) for line in bridge.logs(job)] == [(1, "loaded a"), (2, "loaded torn"), (2, "loaded c")]
    (query,) = blocks("progress-and-logs.md", "sql")
    rows = db.rows(re.sub(r"'[0-9a-f-]{36}'", f"'{job}'", query))
    assert [row[3] for row in rows] == ["loaded torn", "loaded c"]


def test_what_a_run_tells_in_a_tests_own_transaction_goes_with_it(shop: Any, db: Session) -> None:
    @shop.task(name="shop.talk", shared=False)
    def talk() -> object:
        for number in range(50):
            bridge.log(f"line {number}")
            bridge.progress(number / 50, f"step {number}")
        bridge.save_checkpoint({"at": 50})
        return bridge.checkpoint()

    with db.connection.transaction(force_rollback=True):
        job = bridge.enqueue("shop.talk", connection=db.connection)
        (done,) = run_jobs(shop, connection=db.connection)
        assert (done.status, done.result, done.progress) == ("succeeded", {"at": 50}, {"fraction": 0.98, "message": "step 49"})
        assert len(bridge.logs(job, connection=db.connection)) == 50
    assert db.one("select (select count(*) from bridge.log_line) + (select count(*) from bridge.jobs)") == 0


def test_the_callbacks_of_the_page_are_made(shop: Any, db: Session) -> None:
    for code in blocks("callbacks.md", "sql"):
        for statement in filter(str.strip, code.split(";\n")):
            db.rows(f"{statement};") if statement.lstrip().startswith("select") else db.do(statement)
    assert db.rows("select name, kind from bridge.callbacks order by name") == [
        ("orders", "webhook"), ("pager", "notifier"), ("screens", "channel"),
    ]  # fmt: skip
    db.do("update bridge.setting set value = '[]' where name = 'webhook_hosts'")

    @shop.task(name="shop.pack", shared=False)
    def pack(order: int) -> int:
        return order

    (code,) = blocks("callbacks.md", "python")
    exec(code, {"bridge": bridge, "pack": pack})  # noqa: S102 - the page's own words
    assert db.one("select count(*) from bridge.job where options ? 'webhook'") == 2
