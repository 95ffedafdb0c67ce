"""Jobs that are asked for once more because the answer was lost: they may have been made, and even have ended, since."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bridge.queries.connection import Connection

__all__ = ["Tries"]

_MADE = "select made_within::text from bridge.made_within(%s::text::uuid[], %s::float8)"
_MARGIN = 1.0  # seconds, for the way of the first question


class Tries:
    """The tries of one call that makes jobs under ids of its own.

    A live job of such an id is left as it is. One that has ended gives way to a new one, which is right for a second call and wrong for
    a second try of the first.
    """

    def __init__(self, ids: Sequence[UUID]) -> None:
        self._ids = ids
        self._began: float | None = None

    def made(self, ask: Callable[[str, Sequence[Any]], Iterable[Any]]) -> set[UUID]:
        """Those of the jobs that an earlier try has made; to be called before each try.

        Args:
            ask: runs a statement with placeholders as psycopg and Django write them, and gives its rows.
        """
        if self._began is None:
            self._began = time.monotonic()
            return set()
        ids = "{" + ",".join(map(str, self._ids)) + "}"
        with translated():
            return {UUID(row[0]) for row in ask(_MADE, (ids, time.monotonic() - self._began + _MARGIN))}

    def made_through(self, connection: Connection) -> set[UUID]:
        """As `made`, on a psycopg connection."""
        return self.made(lambda statement, values: plainly(connection).execute(statement.encode(), values))
