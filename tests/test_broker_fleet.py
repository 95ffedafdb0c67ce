"""Who consumes the queues is seen whatever form its answers have, and nothing of an answer is run."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING

import pytest
from fix_servers import wait_until
from kombu import Connection, Exchange
from kombu.pidbox import Mailbox

from bridge.broker import fleet, open_broker
from bridge.settings import Settings

if TYPE_CHECKING:
    from fix_servers import RedisServer, StartWorker
    from fix_sql import Session


def test_workers_that_answer_in_pickles_are_seen(db: Session, redis_server: RedisServer, worker: StartWorker) -> None:
    env = {"C_FORCE_ROOT": "1"}  # tests may run as root, and Celery warns of pickles then
    joined = worker("apps.pickled", dsn=db.dsn, broker_url=redis_server.url, env=env)
    worker("apps.pickled", dsn=db.dsn, broker_url=redis_server.url, env={**env, "BRIDGE_TEST_ALONE": "1"})
    broker = open_broker(Settings(broker_url=redis_server.url))
    wait_until(lambda: len(broker.consumers()) == 2, what="the answers of both")
    plugins = {consumer.plugin for consumer in broker.consumers()}
    assert plugins == {None, db.one("select id from bridge.worker where pid = %s", joined.pid)}
    assert {consumer.queue for consumer in broker.consumers()} == {"celery"}
    assert redis_server.client().keys("*.reply.celery.pidbox") == [], "a question leaves no queue for answers behind"
    broker.close()


class Rude:
    """Its pickle exits whoever loads it."""

    def __reduce__(self) -> object:
        return sys.exit, ("loaded",)


def test_an_answer_that_names_code_is_refused(redis_server: RedisServer) -> None:
    with Connection(redis_server.url) as connection:
        answer = Mailbox._publish

        def publish(self: Mailbox, *args: object, reply_ticket: str, channel: object, **options: object) -> None:
            """Ask, and answer at once, as who may write to the broker can."""
            answer(self, *args, reply_ticket=reply_ticket, channel=channel, **options)
            connection.Producer(channel).publish(
                pickle.dumps({"rude@host": [Rude()]}), exchange=Exchange(self.reply_exchange.name, "direct", durable=False),
                routing_key=self.oid, headers={"ticket": reply_ticket}, content_type="application/x-python-serialize",
                content_encoding="binary",
            )  # fmt: skip

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mailbox, "_publish", publish)
            with pytest.raises(pickle.UnpicklingError, match=r"names sys\.exit"):
                fleet.consumers(connection, 1)
