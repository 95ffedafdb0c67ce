"""Signatures of messages: who can write to the broker, and has no key of ours, makes no worker run anything.

A drainer signs what a worker acts by: the body, its type, all headers (the task, the id, the token of the delivery among them), the
route, and where a reply would go. No time is in it, because a token admits one start: a copy that comes late is refused by the row.
"""

from __future__ import annotations

import hmac
import json
import re
from calendar import timegm
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kombu.compression import decompress
from kombu.utils.json import object_hook

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SIGNATURE", "Signer"]

SIGNATURE = "bridge_signature"  # the header
_TYPED = "__type__"  # what kombu writes beside a value that JSON has no form for
_ADDED = re.compile(r"x-(death|delivery-count|acquired-count|(first|last)-death-\w+)$")  # headers that RabbitMQ adds on the way
_ROUTE = ("exchange", "routing_key")
_PROPERTIES = ("correlation_id", "reply_to", "message_id", "type", "user_id", "app_id", "cluster_id")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs with the first of its keys, and believes each of them, so that keys can be exchanged while messages are on their way."""

    keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Signer({len(self.keys)} keys)"

    def signed(self, headers: str, body: bytes, kind: tuple[str, str], route: tuple[str, str], properties: Mapping[str, Any]) -> str:
        """A message's headers as JSON text, with their signature.

        Args:
            headers: JSON text; as a worker gets them.
            body: as it is sent.
            kind: content type and content encoding.
            route: exchange and routing key.
            properties: those of the message.
        """
        read = json.loads(headers, object_hook=object_hook if _TYPED in headers else None)
        # A worker sees the body when kombu has unpacked it.
        whole = decompress(body, read["compression"]) if read.get("compression") else body
        signature = _mac(self.keys[0], _text(read, whole, kind, route, properties))
        return f'{headers.rstrip().removesuffix("}")}, "{SIGNATURE}": "{signature}"}}'

    def objection(self, message: Any) -> str | None:
        """What is wrong with a message of kombu's that has come: ``unsigned`` or ``forged``; None when a drainer with a key has sent it.

        Nothing of the body is decoded for it.
        """
        headers, sent = dict(message.headers), message.delivery_info
        signature = headers.pop(SIGNATURE, None)
        if not isinstance(signature, str):
            return "unsigned"
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        kind, route = (message.content_type, message.content_encoding), tuple(sent.get(name) for name in _ROUTE)
        text = _text(headers, body, kind, route, message.properties)
        genuine = any(hmac.compare_digest(_mac(key, text), signature.encode("ascii", "replace").decode()) for key in self.keys)
        return None if genuine else "forged"


def _mac(key: bytes, text: bytes) -> str:
    return hmac.digest(key, text, "sha256").hex()


def _text(headers: Mapping[str, Any], body: bytes, kind: tuple[Any, ...], route: tuple[Any, ...], properties: Mapping[str, Any]) -> bytes:
    """What is signed: one line of JSON, which has no line break in it, then the body."""
    own = {name: value for name, value in headers.items() if name[:2] != "x-" or not _ADDED.match(name)}
    said = [[part or "" for part in route], [properties.get(name) or "" for name in _PROPERTIES]]
    return _write(["bridge 1", own, kind, said]).encode() + b"\n" + body


def _plain(value: Any) -> Any:
    """What JSON has no form for. A broker may keep times to the second and forget their zone (it is UTC then), and make a text of bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [type(value).__name__, timegm(value.utctimetuple()) if isinstance(value, datetime) else str(value)]


_write = json.JSONEncoder(sort_keys=True, default=_plain).encode
