"""Chords, as Celery's result backend keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.queries.connection import translated

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from bridge.queries.connection import Connection

__all__ = ["Chord", "Taken", "begin", "end_part", "grow", "is_complete", "set_size", "take"]


@dataclass(frozen=True, slots=True)
class Chord:
    """A chord whose parts are about to be enqueued; JSON parts are text."""

    id: str
    body: str
    members: str | None
    queue: str
    expires: timedelta | None


@dataclass(frozen=True, slots=True)
class Taken:
    """A chord that is to be joined in this transaction; the parts are in the order of its header."""

    body: str
    members: str | None
    parts: list[UUID]


def begin(connection: Connection, chord: Chord) -> None:
    """Call ``bridge.begin_chord``."""
    with translated():
        values = (chord.id, chord.body, chord.members, chord.queue, chord.expires)
        connection.execute("select bridge.begin_chord(%s, %s, %s, %s, %s)", values)


def set_size(connection: Connection, identity: str, size: int) -> None:
    """Call ``bridge.size_chord``."""
    with translated():
        connection.execute("select bridge.size_chord(%s, %s)", (identity, size))


def grow(connection: Connection, identity: str) -> None:
    """Call ``bridge.grow_chord``."""
    with translated():
        connection.execute("select bridge.grow_chord(%s)", (identity,))


def end_part(connection: Connection, identity: str, part: UUID, index: int | None) -> None:
    """Call ``bridge.end_part``."""
    with translated():
        connection.execute("select bridge.end_part(%s, %s, %s)", (identity, part, index))


def is_complete(connection: Connection, identity: str) -> bool:
    """Call ``bridge.is_chord_complete``."""
    with translated():
        row = connection.execute("select bridge.is_chord_complete(%s)", (identity,)).fetchone()
    return bool(row and row[0])


def take(connection: Connection, identity: str) -> Taken | None:
    """Call ``bridge.take_chord``; None when it is not complete, was joined, or is in other hands."""
    with translated():
        row = connection.execute("select body, members, parts from bridge.take_chord(%s)", (identity,)).fetchone()
    return Taken(*row) if row else None
