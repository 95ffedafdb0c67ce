"""An application whose tasks use SQLAlchemy sessions: some as they should, some not."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import bridge

app = Celery("orm_shop", broker=os.environ.get("BRIDGE_BROKER_URL"), backend="bridge://")
app.conf.update(broker_connection_retry_on_startup=True)
bridge.install(app)

engine = create_engine(os.environ.get("SHOP_ENGINE_URL", "postgresql+psycopg://"), pool_pre_ping=True)
shared: scoped_session[Session] = scoped_session(sessionmaker(engine))
open_session = Session(engine)


def write(session: Any, order: int) -> None:
    session.execute(text("insert into orders values (:order)"), {"order": order})


@app.task(name="orm.mail")
def mail(order: int) -> str:
    return f"mail for {order}"


@app.task(name="orm.order")
def order(number: int, *, fail: bool = False) -> int:
    with sessionmaker(engine).begin() as session:
        mail.delay(number)
        write(session, number)
        if fail:
            raise ValueError(number)
    return number


@app.task(name="orm.retried", bind=True, max_retries=3)
def retried(self: Any, number: int) -> int:
    with sessionmaker(engine).begin() as session:
        write(session, number)
        mail.delay(number)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
    return number


@app.task(name="orm.replaced", bind=True)
def replaced(self: Any, number: int) -> Any:
    with sessionmaker(engine).begin() as session:
        write(session, number)
        raise self.replace(mail.s(number))


@app.task(name="orm.leaky")
def leaky(number: int) -> int:
    shared.execute(text("select 1"))
    mail.delay(-number)
    write(shared, number)  # never committed, and never closed
    return number


@app.task(name="orm.reader")
def reader(number: int) -> int:
    open_session.execute(text("select 1"))  # never closed
    mail.delay(number)
    return number
