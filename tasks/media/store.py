"""Where results lie: one folder for each content, written so that a rerun or a crash leaves no half file."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NAME_DIGITS = 32  # of the digest's 64: short enough to read, 128 bits are enough to keep contents apart


@dataclass(frozen=True, slots=True)
class Folder:
    """The results of one content: `thumbnail.png`, `analysis.json`, `card.png`, `card.json`."""

    path: Path

    @property
    def thumbnail(self) -> Path:
        """The thumbnail, PNG."""
        return self.path / "thumbnail.png"

    @property
    def analysis(self) -> Path:
        """The analysis, JSON."""
        return self.path / "analysis.json"

    @property
    def card(self) -> Path:
        """The card, PNG."""
        return self.path / "card.png"

    @property
    def card_facts(self) -> Path:
        """What the card shows, JSON."""
        return self.path / "card.json"


def folder_of(output: Path, digest: str) -> Folder:
    """Make (if need be) and return the folder of a content."""
    path = output.absolute() / digest[:_NAME_DIGITS]
    path.mkdir(parents=True, exist_ok=True)
    return Folder(path)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes that name when the block ends well, and is removed when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
