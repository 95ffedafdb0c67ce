"""Who stands for a Celery call: a job of an id that is made here, so that no other can have had it; with a unique key, another's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.choice import OPTION
from bridge.errors import InvalidArgumentError
from bridge.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from bridge.application import Membership

__all__ = ["has_key", "is_fresh", "refuse_awaited", "tell", "telling"]

_KEY = "unique_key"
_LATER = "a later call may find its key taken, and what waits for this one would wait for ever: leave one of the two away"

_PLACE = 5  # of the argument task_id among those of send_task


@dataclass
class _Call:
    """The id that was made for a call, where it was given none, and that of another's job which stands for it."""

    own: str | None
    stands: str | None = None


_current: ContextVar[_Call | None] = ContextVar("bridge_call", default=None)


def has_key(asked: Mapping[str, Any] | None) -> bool:
    """Whether Postgres decides which job stands for a call."""
    return bool(asked and asked.get(_KEY) is not None)


def telling(send_task: Callable[..., Any]) -> Callable[..., Any]:
    """``app.send_task``, whose result has the id of the job that stands for the call.

    Celery makes the id before the message and keeps it for the result, so the result is told afterwards. Where the caller gives none, it
    is made here: ordered by time, as those of all jobs are.
    """

    @functools.wraps(send_task)
    def send(*args: Any, **options: Any) -> Any:
        own = None
        if len(args) <= _PLACE and not options.get("task_id"):
            options["task_id"] = own = str(new_id())
        call = _Call(own)
        token = _current.set(call)
        try:
            result = send_task(*args, **options)
        finally:
            _current.reset(token)
        if call.stands is not None:
            result.id = call.stands
        return result

    return send


def is_fresh(headers: Mapping[str, Any]) -> bool:
    """Whether nobody can have known the id of this call before, nor revoked it, by a stamp for example."""
    call = _current.get()
    return call is not None and call.own == headers["id"] and not headers.get("stamped_headers")


def tell(headers: dict[str, Any], identity: UUID) -> None:
    """Another job stands for the call with these headers: whoever looks at its result, or hears of it by a signal, learns that."""
    headers["id"] = str(identity)
    call = _current.get()
    if call is not None:
        call.stands = str(identity)


def refuse_awaited(joined: Membership, task: str, message: Any, asked: Mapping[str, Any] | None) -> None:
    """Refuse a unique key where something waits for this very call: it would wait for ever when another job stands for it.

    Raises:
        InvalidArgumentError: the call, or a later step of its chain, has both.
    """
    body, group = message.body, (message.headers or {}).get("group")
    followed = body[2] if isinstance(body, tuple) else {}
    if has_key(asked):
        names = {"group": group, "chain": followed.get("chain"), "chord": followed.get("chord")}
        names |= {"link": followed.get("callbacks"), "link_error": followed.get("errbacks")}
        found = [name for name, value in names.items() if value]
        if found:
            raise InvalidArgumentError(f"{_KEY} of task {task} is given in a call with {' and '.join(found)}", _LATER)
    for step in _steps(followed.get("chain") or ()):
        options = [joined.option_of(str(step.get("task"))), (step.get("options") or {}).get(OPTION)]
        if any(has_key(option) for option in options if isinstance(option, Mapping)):
            raise InvalidArgumentError(f"{_KEY} of task {step.get('task')} is given in a step of a chain", _LATER)


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """All signatures in a part of a canvas."""
    if isinstance(part, Mapping) and "task" in part:
        yield part
        for name in ("tasks", "header", "body"):
            yield from _steps((part.get("kwargs") or {}).get(name))
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _steps(item)
