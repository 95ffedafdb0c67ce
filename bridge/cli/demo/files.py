"""What the demo works on: a checkout with the pipelines, and the files that it sends through them."""

from __future__ import annotations

import importlib.util
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING

import bridge
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["SQL", "checkout", "media_files"]

SQL = Path("tasks/media/sql")
_SAMPLES = Path("tasks/media/samples")
# One of each library that the pipeline needs beside Celery, by the name it is imported under.
_LIBRARIES = ("PIL", "av", "httpx", "imagehash", "pypdfium2")


def checkout() -> Path:
    """The folder that has the pipelines: the current one, else the one that `bridge` runs from.

    Raises:
        BridgeError: neither has them, or what they need is not installed.
    """
    places = (Path.cwd(), Path(bridge.__file__).resolve().parent.parent)
    found = next((place for place in places if (place / SQL).is_dir()), None)
    if found is None:
        raise BridgeError(
            "the demo's pipeline is not here", 'clone the repository and run "make demo" in it: a wheel does not carry tasks/'
        )
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise BridgeError(f"the demo needs {', '.join(missing)}", 'run "pip install celery-bridge[local,pipelines,web]"')
    return found


def media_files(given: Iterable[Path], place: Path) -> list[Path]:
    """The files to send, each once: those given, folders walked through; without any, the shipped samples.

    In folders only what its name says is a picture, a PDF or a video counts, and nothing hidden; a file that was given by
    itself is sent whatever it is called.

    Raises:
        BridgeError: there is none.
    """
    chosen = [path.absolute() for path in given] or [place / _SAMPLES]
    found = list(dict.fromkeys(file for path in chosen for file in _below(path)))
    if not found:
        raise BridgeError(f"no picture, PDF or video in {', '.join(map(str, chosen))}", "name other files or folders")
    return found


def _below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and _is_media(file.name) and file.is_file():
            yield file


def _is_media(name: str) -> bool:
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(("image/", "video/")) or kind == "application/pdf"
