"""Columns of many rows as parameters: arrays in Postgres's binary form, in a third of the time that psycopg takes for a list."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar

from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Cursor

__all__ = ["Array", "Integers", "Texts", "Uuids", "adapt"]

# As array_recv reads it: dimensions, whether there are nulls, the elements' type, how many, number of the first. Then each with its length.
_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_UUID = _LENGTH.pack(16).hex()


class Array:
    """An array that is ready to be sent. Of a kind that only its subclasses have."""

    element: ClassVar[str]

    def __init__(self, count: int, body: bytes, *, has_nulls: bool = False) -> None:
        self.data = _HEAD.pack(1, has_nulls, types[self.element].oid, count, 1) + body


class Texts(Array):
    """Texts, some of which may be null."""

    element = "text"

    def __init__(self, values: Iterable[str | None]) -> None:
        encoded = [None if value is None else value.encode() for value in values]
        null = _LENGTH.pack(-1)
        body = b"".join([null if text is None else _LENGTH.pack(len(text)) + text for text in encoded])
        super().__init__(len(encoded), body, has_nulls=None in encoded)


class Uuids(Array):
    """UUIDs, given as 32 hexadecimal digits."""

    element = "uuid"

    def __init__(self, digits: Sequence[str]) -> None:
        super().__init__(len(digits), bytes.fromhex(_UUID + _UUID.join(digits)) if digits else b"")


class Integers(Array):
    """Integers of 4 bytes."""

    element = "int4"

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__(len(values), b"".join([_LENGTH.pack(4) + _LENGTH.pack(value) for value in values]))


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


class _TextsDumper(_Dumper):
    oid = types["text"].array_oid


class _UuidsDumper(_Dumper):
    oid = types["uuid"].array_oid


class _IntegersDumper(_Dumper):
    oid = types["int4"].array_oid


def adapt(cursor: Cursor[Any]) -> None:
    """Let a cursor, and only this one, take such arrays."""
    for kind, dumper in ((Texts, _TextsDumper), (Uuids, _UuidsDumper), (Integers, _IntegersDumper)):
        cursor.adapters.register_dumper(kind, dumper)
