"""What may be asked of a job: from Python's values to the JSON that ``bridge.job_request`` is filled from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CLASSES",
    "asked_of_call",
    "classes",
    "interval",
    "json_text",
    "mapping",
    "plain",
    "require_json",
    "require_json_of",
    "require_several",
    "seconds",
    "several",
]

CLASSES = {"retry_on", "never_on"}
_DURATIONS = ("delay", "timeout", "soft_timeout", "deadline", "unique_for")
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps makes an encoder for each call
_KEYS = "_key"  # how the names of those options end whose texts are templates over a call's arguments


def interval(value: float | timedelta | None) -> timedelta | None:
    """A duration that may be given as seconds.

    Raises:
        InvalidArgumentError: so many seconds are none.
    """
    if not isinstance(value, int | float):
        return value
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"a duration is {value:.6g} seconds", "give seconds of some years at most, or a timedelta") from error


def seconds(name: str, value: float | timedelta | None) -> float | None:
    """How long to wait; None is for ever.

    Raises:
        InvalidArgumentError: it is no number and no timedelta, or not a number.
    """
    given = value.total_seconds() if isinstance(value, timedelta) else value
    if given is None or (isinstance(given, int | float) and given == given):  # noqa: PLR0124 - NaN is not
        return given
    raise InvalidArgumentError(f"{name} is {given if isinstance(given, float) else f'a {type(given).__name__}'}", "give seconds, or None")


def several(name: str, given: Iterable[Any]) -> list[Any]:
    """What is given as several, as a list.

    Raises:
        InvalidArgumentError: it is one thing: a text, a mapping, a number.
    """
    require_several(name, given)
    return list(given)


def require_several(name: str, given: Iterable[Any]) -> None:
    """Refuse one thing where several are to be given.

    Raises:
        InvalidArgumentError: it is a text, a mapping, a number.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgumentError(f"{name} is a {type(given).__name__}", "give a list")


def mapping(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given by names, as a dict; None gives none.

    Raises:
        InvalidArgumentError: it is no mapping.
    """
    try:
        return dict(given or {})
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} is a {type(given).__name__}", "give a dict") from error


def plain(asked: Mapping[str, Any], durations: Sequence[str] = _DURATIONS) -> dict[str, Any]:
    """The same by JSON values that Postgres reads: moments in ISO 8601, durations in seconds, ids as texts.

    Args:
        asked: by the argument names of ``bridge.enqueue``.
        durations: the names of those that are durations.

    Raises:
        InvalidArgumentError: a value holds itself, or a duration is none.
    """
    try:
        return {name: _plain(interval(value) if name in durations else value) for name, value in asked.items()}
    except RecursionError as error:
        raise InvalidArgumentError("a value holds itself, or is nested too deep", "pass values that JSON can hold") from error


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def classes(name: str, given: Sequence[str | type[BaseException]] | None) -> list[str] | None:
    """Classes of errors by their names.

    Raises:
        InvalidArgumentError: one text instead of several, or something that is neither a name nor a class.
    """
    named = None if given is None else given if isinstance(given, str | bytes) or not hasattr(given, "__iter__") else _plain(list(given))
    if named is not None and not (isinstance(named, list) and all(isinstance(item, str) for item in named)):
        shown = repr(given) if isinstance(given, str | list | tuple) else f"a {type(given).__name__}"
        raise InvalidArgumentError(f"{name} is {shown}", "give a list of classes or of their names, [TimeoutError]")
    return named


def require_json(task: str, /, **values: Any) -> None:
    """Refuse, by name, values of a task that are no JSON.

    Raises:
        InvalidArgumentError: one of them is not.
    """
    require_json_of(f"task {task}", values)


def require_json_of(whose: str, values: Mapping[str, Any]) -> None:
    """Refuse, by name, values that are no JSON.

    Raises:
        InvalidArgumentError: one of them is not.
    """
    for name, value in values.items():
        json_text(whose, name, value)


def json_text(whose: str, name: str, value: Any) -> str:
    """A value as JSON.

    Raises:
        InvalidArgumentError: it is none.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "pass numbers, texts, booleans, lists and dicts"
        raise InvalidArgumentError(f"{name} of {whose} is not JSON: {error}", hint) from error


def asked_of_call(task: str, options: Sequence[object], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a Celery call asks of its job, as the option ``bridge`` of its task and of the call itself say.

    Keys may name the call's arguments: ``"report-{0}"`` by position, ``"report-{year}"`` by name.

    Args:
        task: its name.
        options: the options, the task's first; what comes later wins. Those that are no mapping ask nothing.
        args: of the call.
        kwargs: of the call.

    Returns:
        JSON values; None when nothing is asked, as of most calls.

    Raises:
        InvalidArgumentError: a key names an argument that the call does not have, or a value is no JSON.
    """
    asked = {name: value for option in options if isinstance(option, Mapping) for name, value in option.items()}
    if not asked:
        return None
    for name in CLASSES & asked.keys():
        asked[name] = classes(f"{name} of task {task}", asked[name])
    found = plain({name: _filled(task, name, value, args, kwargs) for name, value in asked.items()})
    require_json(task, **found)
    return found


def _filled(task: str, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if not (name.endswith(_KEYS) and isinstance(value, str)):
        return value
    try:
        return value.format(*args, **kwargs)
    except (LookupError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{name} {value!r} of task {task} does not fit the call's arguments: {error!r}",
            'name arguments as the call gives them, "{0}" or "{name}"',
        ) from error
