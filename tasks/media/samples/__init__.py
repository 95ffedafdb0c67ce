"""The sample files that ship with the pipeline; `make` builds them, `shipped` lists them."""

from pathlib import Path

_SUFFIXES = {".jpg", ".png", ".pdf", ".mp4"}


def shipped() -> list[Path]:
    """Return the sample files in name order, the corrupt one included."""
    return sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in _SUFFIXES)
