"""Jobs that no broker can be sent: they are told from the others, which go out, and from an outage, which is nobody's fault.

Whoever may enqueue writes what becomes headers, properties and the names of a route. What a message cannot hold is found here when the
message is made, by the encoder when it is sent, or by the broker, which then breaks off the connection and names no message.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kombu.exceptions import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.queries.dispatch import Claimed

__all__ = ["OF_A_ROW", "Unsendable", "is_of_what_was_sent", "sifted"]

# What making and encoding a message raise because of what is in the row. An outage is none of these.
OF_A_ROW = (
    ArithmeticError, AttributeError, LookupError, RecursionError, SerializationError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
# AMQP's codes for what it was sent: another user's name or too many bytes, too large a frame, a field or a kind of exchange that it does
# not know. Others are about rights, about what exists, or about the broker itself.
_OF_WHAT_WAS_SENT = {406, 501, 502, 503}

Made = TypeVar("Made")


class Unsendable(NamedTuple):
    """A job of which no message can be sent, and why."""

    job: Claimed
    error: Exception


def sifted(jobs: Sequence[Claimed], make: Callable[[Claimed], Made]) -> tuple[list[tuple[Claimed, Made]], list[Unsendable]]:
    """Make something of each job; what was made, and the jobs of which nothing can be."""
    made: list[tuple[Claimed, Made]] = []
    unsendable: list[Unsendable] = []
    for job in jobs:
        try:
            made.append((job, make(job)))
        except OF_A_ROW as error:
            unsendable.append(Unsendable(job, error))
    return made, unsendable


def is_of_what_was_sent(error: BaseException | None) -> bool:
    """Whether a call of the broker failed because of what it was given, as far as the error tells."""
    return isinstance(error, OF_A_ROW) or getattr(error, "reply_code", None) in _OF_WHAT_WAS_SENT
