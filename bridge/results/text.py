"""Values as JSON text, and as columns of a row when they have none."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from typing import Any

from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads
from kombu.utils.json import loads as json_loads

from bridge.queries.results import Value

__all__ = ["argument_texts", "columns", "fit", "is_strict", "json_text", "value_of"]

_NOT_A_NUMBER = re.compile(r"NaN|Infinity")
_UNFIT_SIGN = re.compile("[\x00\ud800-\udfff]")


def json_text(value: Any) -> str:
    """JSON text of a value, by Celery's own encoder (dates, decimals, uuids …).

    Raises:
        kombu.exceptions.EncodeError: it has none.
    """
    text: str = dumps(value, serializer="json")[2]
    return text


def fit(value: Any) -> Any:
    """A value of JSON with another sign in place of those that Postgres cannot hold as text, for what its functions look into."""
    if isinstance(value, dict):
        return {fit(name): fit(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [fit(part) for part in value]
    return _UNFIT_SIGN.sub("\ufffd", value) if isinstance(value, str) else value


def is_strict(text: str) -> bool:
    """Whether Postgres takes this JSON: Python's knows NaN and infinities."""
    if not _NOT_A_NUMBER.search(text):
        return True
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def argument_texts(args: Any, kwargs: Any) -> tuple[str, str]:
    """Arguments as JSON texts; empty ones where Postgres would not take them."""
    try:
        texts = json_text(list(args or ())), json_text(dict(kwargs or {}))
    except EncodeError:
        return "[]", "{}"
    return texts if all(map(_is_fit, texts)) else ("[]", "{}")


def _is_fit(text: str) -> bool:
    return "\\u0000" not in text and "\\ud" not in text and is_strict(text)


def columns(value: Any, serializer: str = "json", **beyond: Any) -> Value:
    """A return value as the columns ``result`` and ``outcome``.

    What has a JSON form is the row's plain result. What JSON in Postgres does not take is kept as text beside it, and what another
    serializer than JSON wrote is kept as it wrote it: Celery reads it from there.

    Args:
        value: what Celery's ``prepare_value`` made of the result.
        serializer: the result backend's.
        **beyond: further parts of the outcome; those that are empty are left out.

    Raises:
        kombu.exceptions.EncodeError: the serializer has no form for it.
    """
    outcome = {name: part for name, part in beyond.items() if part}
    if serializer == "json":
        text: str | None = json_text(value)
    else:
        content_type, encoding, data = dumps(value, serializer=serializer)
        body = data.encode() if isinstance(data, str) else data
        outcome |= {"type": content_type, "encoding": encoding, "body": b64encode(body).decode()}
        text = _readable(value)
    if text is not None and not is_strict(text):
        if serializer == "json":
            outcome["json"] = text
        text = None
    return Value(result=text, outcome=json.dumps(outcome) if outcome else None)


def _readable(value: Any) -> str | None:
    """JSON for people who read the row in SQL, where the value has such a form."""
    try:
        return json_text(value)
    except Exception:  # noqa: BLE001 - whatever its parts refuse with
        return None


def value_of(result: str | None, outcome: dict[str, Any], accept: Any) -> Any:
    """The value that ``columns`` took apart.

    Raises:
        kombu.exceptions.ContentDisallowed: it was written by a serializer that the reader does not accept.
    """
    if "body" in outcome:
        return loads(b64decode(outcome["body"]), outcome["type"], outcome["encoding"], accept=accept)
    text = outcome.get("json", result)
    return None if text is None else json_loads(text)
