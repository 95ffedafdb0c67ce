"""One connection for all that ask: opened when first needed, opened again when it broke."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import psycopg

from bridge.errors import ServerError
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.connection import Connection
    from bridge.settings import Settings

__all__ = ["Reading"]

Answer = TypeVar("Answer")


class Reading:
    """Asks Postgres, one question at a time, so that no number of callers is more than one connection."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        self._settings = settings
        self._name = name
        self._lock = Lock()
        self._connection: Connection | None = None

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Put one question.

        Raises:
            ServerError: Postgres cannot be reached, or does not answer in time.
        """
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._settings.require_database(), name=self._name, timeout=self._settings.timeout)
            try:
                return question(self._connection)
            except psycopg.OperationalError as error:
                raise ServerError(f"postgres does not answer: {str(error).strip()}") from error

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
