"""Marked blocks of a page of documentation, which a test follows as a reader would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MARKED = re.compile(r"^<!-- (run|write|start|sql|python)(?:: (\S+))? -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A marked block: what to do with it, the word after the colon, its text."""

    kind: str
    name: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The marked blocks of a page, in their order."""
    return [Block(kind, name, text) for kind, name, text in _MARKED.findall(page.read_text(encoding="utf-8"))]
