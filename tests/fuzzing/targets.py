"""The targets. Each takes bytes, and raises where something happens that may not happen."""

from __future__ import annotations

import json
import logging
import math
from base64 import b64decode
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Celery
from fix_poison import FOREIGN, body, envelope, header, texts
from kombu.transport.virtual import Message
from kombu.utils.json import loads

import bridge
from bridge.application import membership
from bridge.message import BUNDLE_TASK, Envelope, deliveries
from bridge.moving import crontab
from bridge.moving.crontab import Target
from bridge.results.text import columns, value_of
from bridge.signing import SIGNATURE, Signer
from bridge.worker.bundle.trace import BundleTrace
from bridge.worker.unreadable import OF_THE_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.worker.bundle.trace import _Job

TASK = "fuzz.echo"
SIGNER = Signer((b"a key of this program, which nobody needs to keep",))
NOWHERE = "/nowhere/unpickled"  # what a pickle in the examples would make, if it were read


def application() -> Any:
    """An application that has joined, on a broker within this process."""
    app = Celery("fuzz", broker="memory://", backend="bridge://", set_as_current=False)
    app.conf.update(worker_enable_remote_control=False, task_ignore_result=True)
    bridge.install(app)
    app.task(name=TASK)(echo)
    return app


def echo(*args: Any, **kwargs: Any) -> Any:
    """What it was given."""
    return [args, kwargs]


class Worker:
    """The main process of a worker, as far as it reads messages; it hands nothing to a pool."""

    def __init__(self) -> None:
        for name in ("bridge.worker", "celery", "kombu"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.app = application()
        self.channel = self.app.connection_for_read().default_channel
        self.consumer = consumer = self.app.WorkController(pool="solo", hostname="fuzz@here").consumer
        consumer.on_task_request = lambda _request: None
        consumer.event_dispatcher = self.app.events.Dispatcher(self.channel.connection.client, enabled=False)
        consumer.update_strategies()
        consumer.task_consumer = self.app.amqp.TaskConsumer(self.channel, on_decode_error=consumer.on_decode_error)
        consumer.task_consumer.on_message = consumer.create_task_handler()

    def read(self, text: bytes) -> None:
        """Read a message as from a list of Redis."""
        with suppress(*OF_THE_MESSAGE):  # as guard_reading does
            self.consumer.task_consumer._receive_callback(Message(loads(text.decode()), channel=self.channel))


class Admitting(BundleTrace):
    """A tracer of bundles that is admitted to everything."""

    def _admitted(self, taken: Any) -> set[int]:
        jobs: list[_Job] = list(taken)
        return {job.delivery.seq for job in jobs}


class Targets:
    """All of them, by name. Postgres is the one of the environment, as for any of our programs."""

    @cached_property
    def worker(self) -> Worker:
        return Worker()

    @cached_property
    def tracer(self) -> Admitting:
        joined = membership(self.worker.app)
        assert joined is not None
        return Admitting(self.worker.app, joined)

    def message(self, data: bytes) -> None:
        """Whatever lies in a list: no exception leaves the worker's handler, so none ends it."""
        self.worker.read(data)

    def bundle(self, data: bytes) -> None:
        """The text of a bundle's jobs: it is run and told of, or refused as a whole, and then its jobs are sent one by one."""
        request = {"id": "b", "task": BUNDLE_TASK, "hostname": "fuzz@here", "delivery_info": {}, "bridge_events": True}
        try:
            told = self.tracer("b", [data.decode()], {}, request).retstr
        except OF_THE_MESSAGE:
            return
        assert set(json.loads(told)) == {"left", "counts", "events"}

    def deliveries(self, data: bytes) -> None:
        """The headers that name deliveries: what is read of them can be written, and Postgres takes it."""
        for name in ("bridge", "bridge_bundle"):
            text = data.decode(errors="surrogateescape")
            found = deliveries({name: text})
            assert not found or " ".join(map(str, found)) == text
            assert all(0 <= one.seq < 1 << 63 for one in found)

    def result(self, data: bytes) -> None:
        """A value that a task returns: Postgres takes the row, and who reads it has the same value."""
        try:
            value = loads(data.decode())
        except OF_THE_MESSAGE:
            return
        kept = columns(value)
        joined = membership(self.worker.app)
        assert joined is not None
        joined.connections.get().execute("select %s::json, %s::json", (kept.result, kept.outcome))
        read = value_of(kept.result, json.loads(kept.outcome) if kept.outcome else {}, None)
        assert same(read, value), (read, value)

    def signature(self, data: bytes) -> None:
        """A signed message that somebody has changed: what is believed says what was signed."""
        try:
            given = json.loads(data)
            changed = Envelope(tuple(given["route"]), [], b64decode(given["body"]), *given["kind"], given["headers"], given["properties"])
            said = SIGNER.objection(_Sent({**changed.headers, SIGNATURE: _signature()}, changed))
        except OF_THE_MESSAGE:
            return
        assert said is not None or _told(changed) == _told(SIGNED), (changed, SIGNED)

    def crontab(self, data: bytes) -> None:
        """A crontab: each line is carried over or named with a reason."""
        for is_system in (False, True):
            crontab.entries(data.decode(errors="replace"), TARGET, timezone="UTC", is_system=is_system)

    def all(self) -> dict[str, Callable[[bytes], None]]:
        """By name."""
        return {name: getattr(self, name) for name in EXAMPLES}


def same(got: Any, sent: Any) -> bool:
    """Equal, and NaN is itself."""
    if isinstance(sent, list | tuple):
        return len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, dict):
        return got.keys() == sent.keys() and all(same(got[key], value) for key, value in sent.items())
    return bool(got == sent) or (isinstance(sent, float) and math.isnan(sent) and math.isnan(got))


class _Sent:
    """A message as a worker gets it, as far as its signature goes."""

    def __init__(self, headers: Any, sent: Envelope) -> None:
        self.headers, self.body, self.properties = headers, sent.body, sent.properties
        self.content_type, self.content_encoding = sent.content_type, sent.content_encoding
        self.delivery_info = dict(zip(("exchange", "routing_key"), sent.route, strict=False))


SIGNED = Envelope(("", "celery"), [], body(), "application/json", "utf-8", header(id="one", root_id="one"), {"correlation_id": "one"})


def _signature() -> str:
    kind = (SIGNED.content_type, SIGNED.content_encoding)
    text = SIGNER.signed(json.dumps(SIGNED.headers), SIGNED.body, kind, SIGNED.route, SIGNED.properties)
    return str(json.loads(text)[SIGNATURE])


def _told(one: Envelope) -> Any:
    """What a worker acts by. What a broker adds on the way, and empty properties, say nothing."""
    headers = {name: value for name, value in one.headers.items() if not name.startswith("x-")}
    said = {name: one.properties[name] for name in ("correlation_id", "reply_to") if one.properties.get(name)}
    return json.dumps([list(one.route), headers, one.content_type, one.content_encoding, said], sort_keys=True), one.body


class _NoCatalog:
    """A database without functions."""

    def signatures(self, _schema: str | None, _name: str) -> list[Any]:
        return []

    def type_name(self, _text: str) -> None:
        return None


TARGET = Target("shell.run", [("*/backup*", "backups.run")], {"dbname": "shop", "host": "", "port": "5432"}, _NoCatalog())
_JOB = [header(task=TASK), {"correlation_id": "c", "reply_to": ""}, [[1], {"a": 2}, {"callbacks": None, "errbacks": None, "chain": None}]]
_CHANGES = [{"kind": ["application/x-python-serialize", "binary"]}, {"body": "W1syXSwge30sIHt9XQ=="}, {"route": ["", "other"]},
    {"headers": {**SIGNED.headers, "x-death": [1]}}, {"properties": {"correlation_id": "one", "reply_to": "me"}}, {}]  # fmt: skip
_WHOLE = {"route": ["", "celery"], "body": "W1sxXSwge30sIHt9XQ==", "kind": ["application/json", "utf-8"], "headers": SIGNED.headers,
    "properties": SIGNED.properties}  # fmt: skip
EXAMPLES: dict[str, list[bytes]] = {
    "message": [
        *texts(NOWHERE).values(),
        json.dumps(envelope(headers=header(task=BUNDLE_TASK, bridge=None, bridge_bundle=FOREIGN))).encode(),
        json.dumps(envelope(headers=header(task=TASK, eta="2031-01-01T00:00:00", expires="2031-01-01T00:00:00"))).encode(),
    ],
    "bundle": [json.dumps([_JOB] * 3).encode(), b"[]", b"[[{}, {}, []]]", b'[[{"bridge": "7"}, null, [[], {}, {}]]]'],
    "deliveries": [FOREIGN.encode(), f"{FOREIGN} 8{FOREIGN[1:]}".encode(), f"00{FOREIGN}".encode(), b""],
    "result": [b'{"a": [1, 2.5, null, "\\u0000", "\\ud800", NaN, -Infinity]}', b"1e400", b'"\\\\u0000 NaN"', b'{"__type__": "uuid"}'],
    "signature": [json.dumps({**_WHOLE, **change}).encode() for change in _CHANGES],
    "crontab": [
        b"CRON_TZ=Europe/Berlin\n# name: nightly\n0 3 * * * /usr/bin/backup --all > /dev/null 2>&1\n",
        b"@daily psql -qAt -d shop -c \"select app.tidy(1, name => 'x'::text)\"\n*/5 1-7 * jan mon root PGHOST=x psql -f y\n",
        b'MAILTO="\n',
    ],
}  # fmt: skip
