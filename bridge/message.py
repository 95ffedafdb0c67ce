"""The Celery message of a claimed job, task protocol 2 (Celery's "Message Protocol" page), made from text without parsing it.

A job that came from a Celery call carries its own headers, complete; one made in SQL gets the standard ones. The header ``bridge``
names the delivery: the job's number and the token that the start fence asks for.

A bundle is a message of the task ``bridge.bundle``. Its one argument is a text: a list of jobs, each with the headers, the properties and
the body that its own message would have. A text, because a worker's main process reads the body of each message and needs nothing of it.
The header ``bridge_bundle`` names all of its deliveries.
"""

from __future__ import annotations

import json
import math
import os
import re
from binascii import b2a_base64
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.queries.dispatch import Claimed
    from bridge.signing import Signer

__all__ = [
    "ATTEMPT",
    "BUNDLE",
    "BUNDLE_TASK",
    "HEADER",
    "PLUGIN",
    "ROUTE",
    "Delivery",
    "Envelope",
    "bundle",
    "deliveries",
    "envelope",
    "headers",
    "redis_event",
    "redis_messages",
    "task_id",
]

HEADER = "bridge"
ATTEMPT = "bridge_attempt"  # of second and later attempts: which it is
BUNDLE = "bridge_bundle"  # of a message that has several jobs: their deliveries
BUNDLE_TASK = "bridge.bundle"
PLUGIN = "bridge"  # in what a worker answers about its queues: the id under which it reports
# A bigint, and a uuid, as Postgres writes them: one delivery has one spelling.
_DELIVERY = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_DEFAULT_RANK = 9
ROUTE = ("exchange", "routing_key", "priority", "delivery_mode")  # the properties that jobs of one bundle have in common
_REPR_SIZE = 1024  # characters of argsrepr, Celery's own limit
# The first 100 characters of it are enough of a job in a bundle: all of it would be a third of what a small job has.
_LONG_REPR = re.compile(r'("(?:args|kwargs)repr": "[^"\\]{100})[^"\\]*(?:\\.[^"\\]*)*"')
_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
_HEADERS = (
    '{"lang": "py", "task": %s, "id": %s, "shadow": null, "eta": null, "expires": %s, "group": null, "group_index": null, "retries": 0, '
    '"timelimit": [null, null], "root_id": %s, "parent_id": null, "argsrepr": %s, "kwargsrepr": %s, "origin": "bridge", '
    '"ignore_result": false, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}'
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the header ``bridge`` says: the job's number and the token of this delivery."""

    seq: int
    token: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.token}"

    @classmethod
    def parse(cls, header: object) -> Delivery | None:
        """Read the header; None when the message is not one of ours.

        Anybody may have written it: what no row can have is not ours, and goes no further.
        """
        found = _DELIVERY.fullmatch(header) if isinstance(header, str) else None
        return cls(int(found[1]), found[2]) if found else None

    @classmethod
    def of(cls, headers: object) -> Delivery | None:
        """The delivery that a message's headers name, whatever they are."""
        return cls.parse(headers.get(HEADER)) if isinstance(headers, dict) else None


def deliveries(headers: object) -> list[Delivery]:
    """All deliveries that a message brings: none where it is not ours, or anybody has written what no drainer writes."""
    one = Delivery.of(headers)
    if one is not None:
        return [one]
    named = headers.get(BUNDLE) if isinstance(headers, dict) else None
    found = [Delivery.parse(part) for part in named.split(" ")] if isinstance(named, str) else []
    return [one for one in found if one is not None] if None not in found else []


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message for any kombu transport.

    Attributes:
        route: exchange and routing key.
        declare: queues and exchanges to be declared before, as ``bridge.content`` has described them.
        properties: the other properties.
    """

    route: tuple[str, str]
    declare: list[dict[str, Any]]
    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]


@lru_cache(maxsize=1024)
def _name(text: str) -> str:
    """A name that comes again and again, as JSON."""
    return _quoted(text)


def task_id(job: Claimed) -> str:
    """The id that Celery knows the job by."""
    return job.task_id or job.id


def envelope(
    job: Claimed, hook: Callable[[dict[str, Any]], Any] | None = None, *, ranked: bool = True, signer: Signer | None = None
) -> Envelope:
    """The message as parsed parts: the portable way.

    Args:
        job: what to send.
        ranked: a higher priority of a message is sooner; otherwise the priority that somebody gave a Celery call's job holds in
            Postgres alone.
        hook: brings back what the JSON text of headers and properties could only describe (dates, uuids), as kombu writes it.
        signer: signs it; None leaves it unsigned.
    """
    properties: dict[str, Any] = {"priority": _DEFAULT_RANK - job.rank}
    if job.properties:
        properties = json.loads(job.properties, object_hook=hook, parse_float=_finite)
        if ranked and job.rank < _DEFAULT_RANK:
            properties.setdefault("priority", _DEFAULT_RANK - job.rank)
    exchange, routing_key = properties.pop("exchange", ""), properties.pop("routing_key", job.queue)
    if job.expires_in is not None:
        properties["expiration"] = max(0.0, job.expires_in)
    body, content_type, encoding = _body(job)
    declare = properties.pop("declare", [])
    properties = {"correlation_id": task_id(job), "reply_to": "", "delivery_mode": 2, **properties}
    text = _headers(job)
    if signer is not None:
        text = signer.signed(text, body, (content_type, encoding), (exchange, routing_key), properties)
    return Envelope(
        route=(exchange, routing_key),
        declare=declare,
        body=body,
        content_type=content_type,
        content_encoding=encoding,
        headers=json.loads(text, object_hook=hook, parse_float=_finite),
        properties=properties,
    )


def _finite(text: str) -> float:
    """A number with a fraction or an exponent. RabbitMQ breaks a connection off that brings an infinite one."""
    number = float(text)
    if math.isinf(number):
        raise OverflowError(f"number {text[:40]} is too large for a message")
    return number


def bundle(jobs: Sequence[Claimed]) -> Claimed:
    """A message that has several jobs of one task and one route, as a job that a broker is given like any other.

    Its number is that of the first of them, its token the text of the header ``bridge_bundle``.
    """
    first = jobs[0]
    whole = f"[{', '.join(_content(job) for job in jobs)}]"
    route = {name: value for name, value in json.loads(first.properties or "{}").items() if name in ROUTE}
    return first._replace(
        id=str(uuid4()), task_id=None, task=BUNDLE_TASK, token=" ".join(f"{job.seq}:{job.token}" for job in jobs),
        args=f"[{_quoted(whole)}]", kwargs="{}", embed=None, headers=None, properties=json.dumps(route) if route else None, attempt=0,
    )  # fmt: skip


def _content(job: Claimed) -> str:
    """One job of a bundle: what its own message would have."""
    properties = job.properties or f'{{"correlation_id": {_quoted(task_id(job))}, "reply_to": ""}}'
    short = _LONG_REPR.sub(r'\1..."', _headers(job), 2)
    return f"[{short}, {properties}, [{job.args}, {job.kwargs}, {job.embed or _EMBED}]]"


def headers(job: Claimed) -> dict[str, Any]:
    """The message's headers."""
    return dict(json.loads(_headers(job)))


def redis_messages(jobs: Sequence[Claimed], signer: Signer | None = None) -> list[bytes]:
    """The messages as kombu's Redis transport stores them, ready for LPUSH: twenty times quicker than publishing one by one."""
    tags = os.urandom(16 * len(jobs)).hex()
    return [_redis_message(job, tags[32 * at : 32 * at + 32], signer) for at, job in enumerate(jobs)]


def redis_event(events: Sequence[dict[str, Any]], exchange: str, routing_key: str) -> bytes:
    """A message with these events, as kombu's Redis transport publishes to the channel of a fanout exchange."""
    properties = {
        "delivery_mode": 1, "delivery_info": {"exchange": exchange, "routing_key": routing_key}, "priority": 0, "body_encoding": "base64",
        "delivery_tag": os.urandom(16).hex(),
    }  # fmt: skip
    body = b2a_base64(json.dumps(events).encode(), newline=False).decode()
    kind = {"content-encoding": "utf-8", "content-type": "application/json"}
    return json.dumps({"body": body, **kind, "headers": {}, "properties": properties}).encode()


def _redis_message(job: Claimed, tag: str, signer: Signer | None) -> bytes:
    body, content_type, encoding = _body(job)
    headers, properties = _headers(job), _redis_properties(job, tag)
    if signer is not None:
        read = json.loads(properties)
        route = read["delivery_info"]["exchange"], read["delivery_info"]["routing_key"]
        headers = signer.signed(headers, body, (content_type, encoding), route, read)
    # Constant parts are quoted once, the rest by the C function behind json.dumps: half of what building a message costs.
    return (
        f'{{"body": "{b2a_base64(body, newline=False).decode()}", "content-encoding": {_name(encoding)}, '
        f'"content-type": {_name(content_type)}, "headers": {headers}, "properties": {properties}}}'
    ).encode()


def _redis_properties(job: Claimed, tag: str) -> str:
    if job.properties is None:
        return (
            f'{{"correlation_id": {_quoted(task_id(job))}, "reply_to": "", "delivery_mode": 2, "delivery_info": {{"exchange": "", '
            f'"routing_key": {_name(job.queue)}}}, "priority": 0, "body_encoding": "base64", "delivery_tag": "{tag}"}}'
        )
    given = json.loads(job.properties)
    route = {"exchange": given.pop("exchange", ""), "routing_key": given.pop("routing_key", job.queue)}
    given.pop("declare", None)
    standard = {"correlation_id": task_id(job), "reply_to": "", "delivery_mode": 2, "priority": 0}
    return json.dumps({**standard, **given, "body_encoding": "base64", "delivery_info": route, "delivery_tag": tag})


def _body(job: Claimed) -> tuple[bytes, str, str]:
    if job.payload is not None:
        return job.payload, job.content_type or "application/data", job.content_encoding or "binary"
    return f"[{job.args}, {job.kwargs}, {job.embed or _EMBED}]".encode(), "application/json", "utf-8"


def _shown(job: Claimed) -> tuple[str, str]:
    """What people are shown of the arguments, as JSON."""
    if job.task == BUNDLE_TASK:
        return f'"({job.token.count(" ") + 1} jobs)"', '"{}"'
    return _quoted(job.args[:_REPR_SIZE]), _quoted(job.kwargs[:_REPR_SIZE])


def _headers(job: Claimed) -> str:
    """The headers as JSON text, with ours added by surgery on the closing brace."""
    again = f', "{ATTEMPT}": {job.attempt + 1}' if job.attempt else ""
    ours = f', "{BUNDLE}": "{job.token}"}}' if job.task == BUNDLE_TASK else f', "{HEADER}": "{job.seq}:{job.token}"{again}}}'
    if job.properties and job.headers:
        return job.headers.rstrip().removesuffix("}") + ours
    identity = _quoted(task_id(job))
    expires = "null" if job.expires_at is None else f'"{job.expires_at.isoformat()}"'
    args, kwargs = _shown(job)
    standard = _HEADERS % (_name(job.task), identity, expires, identity, args, kwargs)
    if job.headers is None:
        return standard + ours
    return json.dumps({**json.loads(standard + "}"), **json.loads(job.headers), **json.loads("{" + ours[2:])})
