"""The order of locks as ARCHITECTURE.md has it, and the locks that the SQL names: for tests that hold one against the other."""

from __future__ import annotations

import re

from fix_servers import ROOT

_NAME = re.compile(r"`([^`]+)`")
_ITEM = re.compile(r"^(?:\d+\.|-) (.*(?:\n {2,}.*)*)", re.MULTILINE)
_ADVISORY = re.compile(r"pg_(try_)?advisory_(?:xact_)?lock(?:_shared)?\((?:hashtextextended\('([^']*)'|(\w+)\))?")
_NUMBER = re.compile(r"(\w+) constant bigint := hashtextextended\('([^']*)'")


def items_after(words: str) -> list[list[str]]:
    """The names in backticks of each item of the list of ARCHITECTURE.md that follows these words."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    start = text.index(words) + len(words)
    listed = text[start:].lstrip("\n").split("\n\n", 1)[0]
    return [_NAME.findall(item) for item in _ITEM.findall(listed)]


def advisory_locks() -> tuple[set[str], set[str]]:
    """The advisory locks of the SQL by their constant words: those that somebody waits for, and those that are only tried."""
    waited, tried = {"bridge.install"}, set()  # the first is taken by who installs the SQL
    for file in sorted((ROOT / "sql").glob("*.sql")):
        text = file.read_text(encoding="utf-8")
        numbers = dict(_NUMBER.findall(text))
        for is_tried, name, variable in _ADVISORY.findall(text):
            (tried if is_tried else waited).add((name or numbers.get(variable, f"{variable} in {file.name}")).strip())
    return waited, tried - waited
