"""A connection a context, closed with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from flask import Flask, current_app, g

if TYPE_CHECKING:
    Connection = psycopg.Connection[Any]

TABLES = """
create table if not exists reports (id bigint generated always as identity primary key, title text not null, body text);
create table if not exists effects (id bigint generated always as identity primary key, subject text not null, what text not null);
"""


def connection() -> Connection:
    """This context's connection; it commits by itself."""
    if "connection" not in g:
        g.connection = psycopg.connect(current_app.config["DATABASE"], autocommit=True)
    return g.connection


def note(subject: str, what: str) -> None:
    """Leave an effect."""
    connection().execute("insert into effects (subject, what) values (%s, %s)", (subject, what))


def init_app(app: Flask) -> None:
    """Make the tables, and close each context's connection."""
    with psycopg.connect(app.config["DATABASE"], autocommit=True) as made:
        made.execute("select pg_advisory_lock(1)")
        made.execute(TABLES)

    @app.teardown_appcontext
    def close(_: BaseException | None) -> None:
        if (held := g.pop("connection", None)) is not None:
            held.close()
