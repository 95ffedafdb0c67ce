"""The SQL files: where they are, and what is in them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["files", "script"]


def files() -> Iterator[tuple[str, str]]:
    """The name and text of each SQL file, in the order in which they are applied.

    Raises:
        SchemaError: they came neither with the package nor with a checkout.
    """
    packaged = resources.files("bridge").joinpath("sql")
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent.parent / "sql"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    if not found:
        raise SchemaError("the SQL files of the bridge are not where its package is", "install the package again")
    for entry in found:
        yield entry.name, entry.read_text(encoding="utf-8")


def script() -> str:
    """All SQL files as one text, as ``bridge sql`` prints it and migrations of other tools run it."""
    return "\n".join(f"-- {name}\n{text}" for name, text in files())
