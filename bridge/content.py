"""What a task message becomes in its row: nothing that Celery has decided is lost, and nothing of an earlier delivery comes along."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Exchange, Queue
from kombu.compression import compress
from kombu.entity import maybe_delivery_mode
from kombu.serialization import dumps
from kombu.utils.json import dumps as json_dumps

from bridge import message as wire
from bridge.job import job_id
from bridge.queries.jobs import Content
from bridge.results.text import fit
from bridge.signing import SIGNATURE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

__all__ = ["OURS", "content_of", "undelayed"]

# A retry, and whatever else copies its task's headers, inherits these; each delivery gets its own.
OURS = (wire.HEADER, wire.BUNDLE, wire.ATTEMPT, SIGNATURE, "bridge_run")

# What json.dumps writes and Postgres does not take: such bodies are kept as bytes. Nearly no text has one of the signs, and so to look for
# them first takes a tenth of the time.
_UNFIT = re.compile(r"\\u0000|\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]|\b(NaN|-?Infinity)\b", re.IGNORECASE)
_SIGNS = ("\\u", "NaN", "Infinity")
_DEFAULT_RANK = 9
_LOWER_IS_SOONER, _HIGHER_IS_SOONER = {"redis"}, {"amqp", "mongodb", "zookeeper"}  # kombu's driver types; others know no priorities
_PROPERTIES = (  # AMQP's own; what else Celery hands to a producer steers the publishing
    "priority", "reply_to", "correlation_id", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
_LINKS = {"called": "parent_id", "group": "group"}
_DELAY_PREFIX = re.compile(r"^(?:[01]\.){28}")


def content_of(
    app: Any, kind: str, body: Any, headers: dict[str, Any], options: dict[str, Any], asked: dict[str, Any] | None = None,
    *, fresh: bool = False,
) -> Content:  # fmt: skip
    """The row of one message.

    Args:
        app: the application that sends it.
        kind: kombu's driver type of its broker, which says what a priority means.
        body: args, kwargs and embed.
        headers: the message's headers, final; they are copied.
        options: what Celery hands to the producer beside them: serializer, compression, exchange, routing key, properties …
        asked: what is asked of the job beyond that, see ``bridge.asked``.
        fresh: nobody can have known its id before this call.

    Raises:
        kombu.exceptions.EncodeError: the serializer has no form for the body.
    """
    headers = {name: value for name, value in headers.items() if name not in OURS}
    run_at, expires_at = _moment(app, headers.get("eta")), _moment(app, headers.get("expires"))
    headers["eta"] = None  # the row waits, not the worker
    parts = _json_parts(body, options)
    payload, content_type, encoding = (None, None, None) if parts else _encoded(body, options, headers)
    args, kwargs, embed = parts or ("[]", "{}", None)
    queue, properties = _route(app, options)
    identity = job_id(headers["id"])
    return Content(
        id=identity, task_id=None if str(identity) == headers["id"] else headers["id"], task=headers["task"],
        queue=queue, rank=_rank(options.get("priority"), kind), args=args, kwargs=kwargs, embed=embed, payload=payload,
        content_type=content_type, content_encoding=encoding, headers=_json(headers), properties=_json(properties),
        expires_at=expires_at, run_at=run_at, chord=headers.get("group") if body[2].get("chord") else None,
        options=_json(asked) if asked else None, links=_links(headers), fresh=fresh,
    )  # fmt: skip


def _links(headers: dict[str, Any]) -> str | None:
    """Whom a task belongs to, as ids: who called it, its group; None for most."""
    belongs = {kind: str(job_id(headers[name])) for kind, name in _LINKS.items() if headers.get(name)}
    return json.dumps(belongs) if belongs else None


def _moment(app: Any, value: Any) -> datetime | None:
    """A time as a worker reads it: without a zone it is UTC."""
    return maybe_make_aware(maybe_iso8601(value), app.timezone) if value else None


def _json(value: dict[str, Any]) -> str:
    """JSON text as the Redis transport writes it (dates and the like keep their type), of what JSON in Postgres takes."""
    text: str = json_dumps(value)
    if _is_unfit(text):
        text = json_dumps(fit(json.loads(text, parse_constant=str)))
    return text


def _json_parts(body: Any, options: dict[str, Any]) -> tuple[str, str, str] | None:
    if options.get("serializer") != "json" or options.get("compression"):
        return None
    args, kwargs, embed = (dumps(part, serializer="json")[2] for part in body)
    return None if any(map(_is_unfit, (args, kwargs, embed))) else (args, kwargs, embed)


def _is_unfit(text: str) -> bool:
    return any(sign in text for sign in _SIGNS) and _UNFIT.search(text) is not None


def _encoded(body: Any, options: dict[str, Any], headers: dict[str, Any]) -> tuple[bytes, str, str]:
    content_type, encoding, data = dumps(body, serializer=options.get("serializer"))
    payload = data.encode() if isinstance(data, str) else data
    if options.get("compression"):
        payload, headers["compression"] = compress(payload, options["compression"])
    return payload, content_type, encoding


def _rank(priority: int | None, kind: str) -> int:
    """Where a call stands among the ready: 9 is what calls without priority have; on RabbitMQ 9 - n is sooner, on Redis 9 + n later."""
    bounded = min(max(priority or 0, 0), 9)
    if kind in _LOWER_IS_SOONER:
        return _DEFAULT_RANK + bounded
    return _DEFAULT_RANK - bounded if kind in _HIGHER_IS_SOONER else _DEFAULT_RANK


def _route(app: Any, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The queue that the row is counted under, and what publishing it later needs to know."""
    exchange, routing_key = _name(options.get("exchange")), options.get("routing_key") or ""
    entities = [entity for entity in options.get("declare") or () if isinstance(entity, Queue | Exchange)]
    queues = _bound(entities, exchange) or _bound(app.amqp.queues.values(), exchange) if exchange else []
    entities += [queue for queue in queues if queue not in entities]
    properties = {name: options[name] for name in _PROPERTIES if options.get(name) is not None}
    properties |= {"delivery_mode": maybe_delivery_mode(options.get("delivery_mode")), "exchange": exchange, "routing_key": routing_key}
    declare = [_declaration(entity) for entity in entities if not _is_plain(entity)]
    if declare:
        properties["declare"] = declare
    return _queue_name(queues, routing_key) or exchange, properties


def _bound(entities: Iterable[Queue | Exchange], exchange: str) -> list[Queue]:
    return [queue for queue in entities if isinstance(queue, Queue) and queue.exchange and queue.exchange.name == exchange]


def _name(exchange: Any) -> str:
    return str(getattr(exchange, "name", exchange) or "")


def _queue_name(queues: list[Queue], routing_key: str) -> str:
    if len(queues) == 1:
        return str(queues[0].name)
    return next((str(queue.name) for queue in queues if queue.routing_key == routing_key), routing_key)


def _is_plain(entity: Any) -> bool:
    """Whether a queue is what a drainer declares anyway: durable, with a direct exchange of its own name."""
    name, exchange = entity.name, getattr(entity, "exchange", None)
    if exchange is None or (exchange.name, exchange.type, entity.routing_key) != (name, "direct", name):
        return False
    special = (
        entity.queue_arguments, entity.binding_arguments, entity.bindings, entity.expires, entity.message_ttl, entity.max_length,
        entity.max_length_bytes, entity.max_priority, entity.exclusive, entity.auto_delete, exchange.auto_delete, exchange.arguments,
    )  # fmt: skip
    return bool(entity.durable and exchange.durable and not any(special))


def _declaration(entity: Queue | Exchange) -> dict[str, Any]:
    """What a drainer needs to declare it again, less what is kombu's default."""
    kind = "queue" if isinstance(entity, Queue) else "exchange"
    return {"kind": kind, **{name: value for name, value in entity.as_dict(recurse=True).items() if value not in (None, [], {}, "")}}


def undelayed(app: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Take back Celery's detour for delays on quorum queues: the row waits, and its message then goes to the queue itself."""
    routing_key = options.get("routing_key")
    if not _name(options.get("exchange")).startswith("celery_delayed_") or not routing_key:
        return options
    key = _DELAY_PREFIX.sub("", routing_key)
    queues = app.amqp.queues
    queue = next((queue for queue in queues.values() if key in {queue.routing_key, queue.name}), app.amqp.default_queue)
    return {**options, "exchange": None, "queue": queue, "routing_key": key}
