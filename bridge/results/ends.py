"""The end of a workflow: whose result is the result of all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import chord, group, maybe_signature
from celery.canvas import _chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ends", "lead_to"]


def ends(signature: Any) -> Iterator[Any]:
    """The signatures whose results are that of this one."""
    signature = maybe_signature(signature)
    if isinstance(signature, group):
        for task in signature.tasks:
            yield from ends(task)
    elif isinstance(signature, _chain) and signature.tasks:
        yield from ends(signature.tasks[-1])
    elif isinstance(signature, chord) and signature.body is not None:
        yield from ends(signature.body)
    else:
        yield signature


def lead_to(signatures: Iterable[Any], task_id: str) -> bool:
    """Whether one of these signatures ends in the task of this id."""
    return any(end.options.get("task_id") == task_id for signature in signatures for end in ends(signature))
