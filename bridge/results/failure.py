"""Exceptions on their way through a row: which one was raised, what is kept of it, and the same class again at the reader's."""

from __future__ import annotations

import sys
import traceback as tracebacks
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from celery.utils.serialization import UnpickleableExceptionWrapper, ensure_serializable
from kombu.serialization import dumps, loads

from bridge.errors import DeliveryError
from bridge.results.text import fit, is_strict, json_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["error_of", "noted_error", "original", "rebuilt", "revived"]

_MESSAGE_SIZE = 64 << 10  # characters kept of a message
_TRACEBACK_SIZE = 64 << 10  # characters kept of a traceback's end
_PICKLING = {"pickle"}  # serializers that can carry an exception as it is


def original(exc: Any) -> Any:
    """The exception that the task raised, while it is being handled.

    Celery hands on a stand-in for one that pickle cannot rebuild: a base class of it, or a wrapper. We keep the true one's class.
    """
    raised = sys.exc_info()[1]
    if raised is None or type(raised) is type(exc):
        return exc
    if isinstance(exc, UnpickleableExceptionWrapper):
        return raised if exc.exc_cls_name == type(raised).__name__ else exc
    return raised if isinstance(raised, type(exc)) and raised.args == exc.args else exc


def error_of(exc: Any, traceback: Any, serializer: str = "json") -> dict[str, Any]:
    """The error of a row: type, message, the end of the traceback, what rebuilding the exception needs, and what rules of retrying ask.

    The latter are the names of its class and of all that it derives from.

    Args:
        exc: what was raised.
        traceback: its text, or something that has one; None takes the exception's own.
        serializer: the result backend's; pickle keeps the exception as it is, others its class and arguments.
    """
    text = str(traceback) if traceback else None
    if text is None and isinstance(exc, BaseException) and exc.__traceback__ is not None:
        text = "".join(tracebacks.format_exception(exc))
    kept = _kept(exc)
    error = {
        "type": kept["exc_type"].rpartition(".")[2], "module": kept["exc_module"], "message": _message(exc),
        "traceback": text[-_TRACEBACK_SIZE:].replace("\x00", "\ufffd") if text else None, "exception": kept,
    }  # fmt: skip
    if isinstance(exc, DeliveryError) and exc.retry_after is not None:
        error["retry_after"] = exc.retry_after
    if isinstance(exc, BaseException):
        error["bases"] = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(exc).__mro__[:-2]]
    if serializer in _PICKLING:
        error["packed"] = _packed(exc, serializer)
    return {name: fit(part) for name, part in error.items()}


def noted_error(value: Any) -> dict[str, Any]:
    """The error of a row by what a task has stored with the state FAILURE: an exception, Celery's form of one, or words."""
    if isinstance(value, BaseException):
        return error_of(value, None)
    if isinstance(value, dict) and "exc_type" in value:
        words = value.get("exc_message")
        text = "; ".join(map(str, words)) if isinstance(words, list | tuple) else str(words)
        error = {"type": value["exc_type"], "module": value.get("exc_module"), "message": text, "traceback": None, "exception": value}
        return {name: fit(part) for name, part in error.items()}
    return {"type": "Exception", "module": "builtins", "message": fit(str(value)), "traceback": None}


def _kept(exc: Any) -> dict[str, Any]:
    """An exception as Celery writes it to JSON."""
    if isinstance(exc, UnpickleableExceptionWrapper):
        kind, module, args = exc.exc_cls_name, exc.exc_module, exc.exc_args
    else:
        kind, module, args = type(exc).__qualname__, type(exc).__module__, getattr(exc, "args", ())
    return {"exc_type": kind, "exc_message": ensure_serializable(args, _strict_text), "exc_module": module}


def _strict_text(value: Any) -> str:
    """JSON text that Postgres takes; raises for any other value, whose repr is kept then."""
    text = json_text(value)
    if not is_strict(text):
        raise ValueError(text)
    return text


def _packed(exc: Any, serializer: str) -> dict[str, str] | None:
    try:
        content_type, encoding, data = dumps(exc, serializer=serializer)
    except Exception:  # noqa: BLE001 - an exception may refuse in any way; its class and arguments are kept all the same
        return None
    return {"type": content_type, "encoding": encoding, "body": b64encode(data).decode()}


def _message(exc: Any) -> str:
    try:
        text = str(exc)
        return (text if len(text) <= _MESSAGE_SIZE else f"{text[:_MESSAGE_SIZE]}…").replace("\x00", "\ufffd")
    except Exception as error:  # noqa: BLE001 - a user's __str__ may do anything
        return f"<its text cannot be shown: {type(error).__name__}>"


def rebuilt(error: dict[str, Any], accept: Any, to_python: Callable[[Any], Any]) -> Any:
    """The exception of a row's error.

    Args:
        error: as ``error_of`` made it, or one written in SQL: type and message.
        accept: content types that the reader takes.
        to_python: Celery's own way from its JSON form.
    """
    packed = error.get("packed")
    if packed is not None:
        return to_python(loads(b64decode(packed["body"]), packed["type"], packed["encoding"], accept=accept))
    kept = error.get("exception") or {
        "exc_type": error.get("type") or "Exception", "exc_message": [error.get("message") or ""], "exc_module": error.get("module"),
    }  # fmt: skip
    return revived(to_python(kept), kept)


def revived(exc: Any, kept: dict[str, Any]) -> Any:
    """Celery's rebuilt exception; one whose constructor refused its own arguments becomes its class again, made without it."""
    if type(exc) is not Exception or kept.get("exc_type") == "Exception":
        return exc
    found: Any = sys.modules.get(kept.get("exc_module") or "")
    for name in kept["exc_type"].split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        return exc
    message = kept.get("exc_message", "")
    try:
        return found.__new__(found, *(message if isinstance(message, list | tuple) else [message]))
    except Exception:  # noqa: BLE001 - a __new__ of its own may refuse as well
        return exc
