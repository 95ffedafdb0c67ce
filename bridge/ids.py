"""Ids as ``bridge.new_id()`` makes them: ordered by time, otherwise random (RFC 9562, version 7); many of them in little memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import overload
from uuid import UUID

__all__ = ["Ids", "new_id", "new_ids"]

_SIZE = 16  # bytes of an id
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def new_id() -> UUID:
    """One id."""
    return UUID(new_ids(1)[0])


def new_ids(count: int) -> list[str]:
    """So many ids, as 32 hexadecimal digits: a tenth of the time that ``UUID`` takes.

    They ascend, so that Postgres adds them at the end of its index.
    """
    start = f"{time.time_ns() // 1_000_000:012x}7"
    digits = os.urandom(10 * count).hex()
    return sorted(f"{start}{digits[at : at + 3]}{_VARIANT[digits[at + 3]]}{digits[at + 4 : at + 19]}" for at in range(0, 20 * count, 20))


class Ids(Sequence[UUID]):
    """Ids in an order, 16 bytes each; it compares equal to a list of the same."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self._bytes = bytearray()

    def extend(self, texts: Sequence[str]) -> None:
        """Add ids given as 32 hexadecimal digits."""
        self._bytes += bytes.fromhex("".join(texts))

    def replace(self, start: int, identities: Sequence[UUID]) -> None:
        """Put these in the places from ``start`` on."""
        for number, identity in enumerate(identities, start):
            self._bytes[number * _SIZE : (number + 1) * _SIZE] = identity.bytes

    def __len__(self) -> int:
        return len(self._bytes) // _SIZE

    @overload
    def __getitem__(self, place: int) -> UUID: ...
    @overload
    def __getitem__(self, place: slice) -> list[UUID]: ...
    def __getitem__(self, place: int | slice) -> UUID | list[UUID]:
        chosen = range(len(self))[place]
        if isinstance(chosen, int):
            return UUID(bytes=bytes(self._bytes[chosen * _SIZE : (chosen + 1) * _SIZE]))
        return [self[number] for number in chosen]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | tuple | Ids) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Ids({len(self)})"
