"""The engine, sessions, and the tables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlalchemy import JSON, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

engine = create_engine(os.environ["NOTES_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
SessionLocal = sessionmaker(bind=engine, autoflush=False)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")
    words: Mapped[dict[str, int] | None] = mapped_column(JSON)


class Effect(Base):
    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str]
    what: Mapped[str]


def get_session() -> Iterator[Session]:
    """FastAPI's dependency: one session a request, closed after it."""
    session = SessionLocal()
    try:
        yield session
    finally:
        session.close()
