"""The Celery message of a claimed job, task protocol 2 (Celery's "Message Protocol" page), made from text without parsing it.

A job that came from a Celery call carries its own headers, complete; one made in SQL gets the standard ones. The header ``bridge``
names the delivery: the job's number and the token that the start fence asks for.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.queries.dispatch import Claimed

__all__ = ["HEADER", "Delivery", "Envelope", "envelope", "redis_messages", "task_id"]

HEADER = "bridge"
_REPR_SIZE = 1024  # characters of argsrepr, Celery's own limit
_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
_HEADERS = (
    '{"lang": "py", "task": %s, "id": %s, "shadow": null, "eta": null, "expires": %s, "group": null, "group_index": null, "retries": 0, '
    '"timelimit": [null, null], "root_id": %s, "parent_id": null, "argsrepr": %s, "kwargsrepr": %s, "origin": "bridge", '
    '"ignore_result": false, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}'
)
_REDIS = (
    '{"body": "%s", "content-encoding": %s, "content-type": %s, "headers": %s, "properties": {"correlation_id": %s, "reply_to": "", '
    '"delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": %s}, "priority": %s, "body_encoding": "base64", '
    '"delivery_tag": "%s"}}'
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
        """Read the header; None when the message is not one of ours."""
        if not isinstance(header, str):
            return None
        seq, found, token = header.partition(":")
        return cls(int(seq), token) if found and seq.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message for any kombu transport."""

    queue: str
    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]


def task_id(job: Claimed) -> str:
    """The id that Celery knows the job by."""
    return job.task_id or str(job.id)


def envelope(job: Claimed) -> Envelope:
    """The message as parsed parts: the portable way."""
    properties = json.loads(job.properties) if job.properties else {"exchange": "", "routing_key": job.queue, "priority": 9 - job.rank}
    body, content_type, encoding = _body(job)
    return Envelope(
        queue=job.queue,
        body=body,
        content_type=content_type,
        content_encoding=encoding,
        headers=json.loads(_headers(job)),
        properties={"correlation_id": task_id(job), "reply_to": "", "delivery_mode": 2, **properties},
    )


def redis_messages(jobs: Sequence[Claimed]) -> list[bytes]:
    """The messages as kombu's Redis transport stores them, ready for LPUSH: twenty times quicker than publishing one by one."""
    tags = os.urandom(16 * len(jobs)).hex()
    return [_redis_message(job, tags[32 * at : 32 * at + 32]) for at, job in enumerate(jobs)]


def _redis_message(job: Claimed, tag: str) -> bytes:
    body, content_type, encoding = _body(job)
    headers = _headers(job)
    if job.properties:
        properties = json.loads(job.properties)
        exchange, routing_key = properties.pop("exchange", ""), properties.pop("routing_key", job.queue)
        full = {
            "correlation_id": task_id(job), "reply_to": "", "delivery_mode": 2, "priority": 0, **properties, "body_encoding": "base64",
            "delivery_info": {"exchange": exchange, "routing_key": routing_key}, "delivery_tag": tag,
        }  # fmt: skip
        message = (
            f'{{"body": "{b64encode(body).decode()}", "content-encoding": {json.dumps(encoding)}, '
            f'"content-type": {json.dumps(content_type)}, "headers": {headers}, "properties": {json.dumps(full)}}}'
        )
        return message.encode()
    identity = json.dumps(task_id(job))
    return (
        _REDIS
        % (
            b64encode(body).decode(),
            json.dumps(encoding),
            json.dumps(content_type),
            headers,
            identity,
            json.dumps(job.queue),
            0,
            tag,
        )
    ).encode()


def _body(job: Claimed) -> tuple[bytes, str, str]:
    if job.payload is not None:
        return job.payload, job.content_type or "application/data", job.content_encoding or "binary"
    return f"[{job.args}, {job.kwargs}, {job.embed or _EMBED}]".encode(), "application/json", "utf-8"


def _headers(job: Claimed) -> str:
    """The headers as JSON text, with ours added by surgery on the closing brace."""
    ours = f', "{HEADER}": "{job.seq}:{job.token}"}}'
    if job.properties and job.headers:
        return job.headers.rstrip().removesuffix("}") + ours
    identity = json.dumps(task_id(job))
    expires = "null" if job.expires_at is None else f'"{job.expires_at.isoformat()}"'
    args, kwargs = json.dumps(job.args[:_REPR_SIZE]), json.dumps(job.kwargs[:_REPR_SIZE])
    standard = _HEADERS % (json.dumps(job.task), identity, expires, identity, args, kwargs)
    if job.headers is None:
        return standard + ours
    return json.dumps({**json.loads(standard + "}"), **json.loads(job.headers), HEADER: f"{job.seq}:{job.token}"})
