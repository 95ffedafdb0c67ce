"""What a bundle's message says of its jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge import message
from bridge.queries.dispatch import Claimed

PROPERTIES = '{"correlation_id": "a", "reply_to": "", "exchange": "", "routing_key": "celery"}'


def job(headers: dict[str, Any]) -> Claimed:
    """A job that came from a Celery call with these headers."""
    empty: dict[str, Any] = dict.fromkeys(Claimed._fields)
    given = {"seq": 1, "token": "t", "id": "i", "task": "add", "queue": "celery", "args": "[1]", "kwargs": "{}", "attempt": 0, "rank": 9}
    return Claimed(**{**empty, **given, "headers": json.dumps(headers), "properties": PROPERTIES})


def headers_in_bundle(given: dict[str, Any]) -> dict[str, Any]:
    whole = message.bundle([job(given), job({"task": "add"})])
    (text,) = json.loads(whole.args)
    read: dict[str, Any] = json.loads(text)[0][0]
    assert read.pop("bridge") == "1:t"
    return read


@pytest.mark.parametrize("shown", ["('secret',)", "*" * 99, 'it\'s "quoted"' * 40, "é" * 300, "", None])
def test_what_is_shown_of_arguments_stays_as_it_is_where_it_is_short_or_has_escapes(shown: str | None) -> None:
    given = {"task": "add", "argsrepr": shown, "kwargsrepr": "{}", "stamps": {"x": 'a", "argsrepr": "b'}}
    assert headers_in_bundle(given) == given


def test_what_is_shown_of_long_arguments_is_cut() -> None:
    long = "a" * 100 + "\\" + 'b"' * 300 + "\\"
    given = {"task": "add", "argsrepr": long, "kwargsrepr": long, "after": 1}
    assert headers_in_bundle(given) == {"task": "add", "argsrepr": "a" * 100 + "...", "kwargsrepr": "a" * 100 + "...", "after": 1}
