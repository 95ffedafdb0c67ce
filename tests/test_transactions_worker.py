"""Transactions inside of tasks, with a real worker: what follows a task is never its session's to lose."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fix_servers import ROOT, wait_for_value
from fix_sql import Session as Sql
from fix_transactions import engine_url

import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import StartDrainer, StartWorker

MAILS = "select count(*) from bridge.jobs where task = 'orm.mail' and args ->> 0 = %s and status = 'succeeded'"


@pytest.fixture
def shop(dsn: str, joining: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The application `apps/orm_shop.py`, in this process as in its worker."""
    del joining
    monkeypatch.setenv("SHOP_ENGINE_URL", engine_url(dsn, "psycopg"))
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    sys.modules.pop("apps.orm_shop", None)
    from apps import orm_shop

    yield orm_shop
    orm_shop.open_session.close()
    orm_shop.engine.dispose()
    orm_shop.app.close()
    orm_shop.app.bridge.renew()


def test_tasks_with_sessions_make_what_they_commit_and_nothing_else(
    shop: Any, dsn: str, worker: StartWorker, drainer: StartDrainer
) -> None:
    db = Sql(dsn)
    db.do("create table orders (id integer primary key)")
    with shop.engine.begin() as connection, bridge.using(connection):
        chain = shop.order.s(1) | shop.mail.si(100)
        ended = [chain.delay(), shop.retried.delay(3), shop.replaced.delay(4), (shop.leaky.s(5) | shop.mail.si(500)).delay()]
        ended.append(shop.reader.delay(6))
        failing = shop.order.delay(2, fail=True)
    drainer()
    worker("apps.orm_shop", concurrency=1, env={"SHOP_ENGINE_URL": os.environ["SHOP_ENGINE_URL"]})
    assert [result.get(timeout=90) for result in ended] == ["mail for 100", 3, "mail for 4", "mail for 500", 6]
    with pytest.raises(ValueError, match="2"):
        failing.get(timeout=90)
    for number, count in {1: 1, 2: 0, 3: 1, -5: 0, 6: 1}.items():
        wait_for_value(db.dsn, MAILS, (str(number),), value=count)
    assert [row[0] for row in db.rows("select id from orders order by id")] == [1, 3]
    assert db.rows("select attempts, status from bridge.jobs where task = 'orm.retried'") == [(2, "succeeded")]
    # What a run made is there before its end is: a worker that dies in between would not repeat it.
    before = "select m.created_at < r.finished_at from bridge.jobs m, bridge.jobs r where r.task = 'orm.reader' and m.args ->> 0 = '6'"
    assert db.rows(f"{before} and m.task = 'orm.mail'") == [(True,)]
