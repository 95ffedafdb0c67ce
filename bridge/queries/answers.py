"""Asking Postgres one thing and reading the answer, whatever rows a caller's connection makes."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from bridge.queries.connection import plainly, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.queries.connection import Connection

__all__ = ["by_name", "columns", "records", "value"]


def value(connection: Connection, query: str, values: Mapping[str, Any] | Sequence[Any] | None = None) -> Any:
    """The first column of the first row; None when there is no row."""
    with translated():
        row = plainly(connection).execute(query.encode(), values).fetchone()
    return row[0] if row else None


def records(connection: Connection, query: str, values: Mapping[str, Any] | Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """All rows, by the names of their columns; not prepared, because the schema of a later release may bring more columns."""
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values, prepare=False).fetchall()


def columns(record: type) -> str:
    """The fields of a dataclass or named tuple as the columns to ask for: a later release may add others, which we do not know."""
    names = getattr(record, "_fields", None) or [field.name for field in fields(record)]
    return ", ".join(f'"{name}"' for name in names)


def by_name(function: str, names: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """The call of one of our functions by the names of its arguments, each with its type where Postgres could not tell."""
    call = ", ".join(f"{name} => %({name})s" + (f"::{types[name]}" if name in types else "") for name in names)
    return f"select bridge.{function}({call})"
