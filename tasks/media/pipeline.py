"""What one file goes through: identified, decoded, analysed, and drawn as a card.

Each step can be had alone, and each may run again: results are named by content and replaced whole.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.media.analysis import Analysis, analyse, analyser_name
from tasks.media.card import draw_card
from tasks.media.decode.kind import Kind, identify
from tasks.media.decode.look import Look, UnreadableError
from tasks.media.errors import MediaError
from tasks.media.local import Findings
from tasks.media.sandbox import look_at
from tasks.media.settings import MediaSettings
from tasks.media.store import Folder, digest_of, folder_of, replacing, write

Report = Callable[[float, str], object]
"""Told how far a file is: a fraction from 0 to 1 and a few words."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file that was opened and decoded, with its thumbnail in place."""

    path: Path
    digest: str
    folder: Folder
    look: Look

    @property
    def facts(self) -> dict[str, Any]:
        """What every result begins with; `pages`, `duration` and `streams` only where the file has them."""
        chosen = {
            "type": self.look.kind,
            "format": self.look.format,
            "width": self.look.width,
            "height": self.look.height,
            "pages": self.look.pages,
            "duration": self.look.duration,
            "streams": self.look.streams or None,
            "sha256": self.digest,
            "thumbnail": str(self.folder.thumbnail),
        }
        return {name: value for name, value in chosen.items() if value is not None}


def open_item(path: str, settings: MediaSettings) -> Item:
    """Identify and decode one file, and leave its thumbnail in the folder of its content.

    Raises:
        MediaError: the file is at fault: empty, corrupt, cut short, encrypted, too large, mislabelled, or outside `MEDIA_ROOT`.
        TemporaryError: decoding did not end in time.
        OSError: the file is not there or may not be read.
    """
    place = resolve(path, settings)
    kind = identify_named(place, settings)
    digest = digest_of(place)
    folder = folder_of(settings.output, digest)
    with replacing(folder.thumbnail) as temporary:
        look = look_at(place, kind, temporary, settings)
    return Item(place, digest, folder, look)


def resolve(path: str, settings: MediaSettings) -> Path:
    """Return the absolute path of a file; a relative one starts at `MEDIA_ROOT`, else where the worker runs.

    Raises:
        MediaError: the path leads out of `MEDIA_ROOT`.
    """
    if settings.root is None:
        return Path(path).absolute()
    root = settings.root.resolve()
    place = (root / path).resolve()
    if not place.is_relative_to(root):
        raise MediaError(path, f"lies outside of MEDIA_ROOT ({root})")
    return place


def identify_named(path: Path, settings: MediaSettings) -> Kind:
    """Identify a file by its content and put its name into the error.

    Raises:
        MediaError: as `identify` refuses it.
    """
    try:
        return identify(path, settings.limits)
    except UnreadableError as error:
        raise MediaError(path.name, str(error)) from error


def thumbnail(path: str, settings: MediaSettings, report: Report) -> dict[str, Any]:
    """Make the thumbnail of one file.

    Raises:
        MediaError, TemporaryError, OSError: as `open_item`.
    """
    report(0.1, "decoding")
    return open_item(path, settings).facts


def analysis(path: str, settings: MediaSettings, report: Report) -> dict[str, Any]:
    """Analyse one file.

    Raises:
        MediaError, TemporaryError, OSError: as `open_item`.
        AnalysisRefusedError: the analysis endpoint refuses such requests.
    """
    report(0.1, "decoding")
    item = open_item(path, settings)
    report(0.5, "analysing")
    found = kept_analysis(item, settings)
    return {**item.facts, "title": found.title, "analysis": dataclasses.asdict(found)}


def process(path: str, settings: MediaSettings, report: Report) -> dict[str, Any]:
    """Take one file all the way: thumbnail, analysis and card.

    Raises:
        MediaError, TemporaryError, OSError: as `open_item`.
        AnalysisRefusedError: the analysis endpoint refuses such requests.
    """
    report(0.1, "decoding")
    item = open_item(path, settings)
    report(0.5, "analysing")
    found = kept_analysis(item, settings)
    report(0.9, "drawing the card")
    result = {**item.facts, "card": str(item.folder.card), "title": found.title, "analysis": dataclasses.asdict(found)}
    write(item.folder.card, draw_card(item.look, found, item.folder.thumbnail, item.digest))
    write(item.folder.card_facts, to_json(result))
    return result


def kept_analysis(item: Item, settings: MediaSettings) -> Analysis:
    """Return the analysis of a content, and keep it beside the thumbnail.

    A model may word the same file differently twice and costs money each time: its first answer stands, as long as the same
    model is configured. The local analyser is run again.

    Raises:
        AnalysisRefusedError, TemporaryError: as `analyse`.
    """
    if settings.analysis_url and (kept := read_analysis(item.folder.analysis, analyser_name(settings))):
        return kept
    found = analyse(item.path.name, item.look, item.folder.thumbnail, settings)
    write(item.folder.analysis, to_json(dataclasses.asdict(found)))
    return found


def read_analysis(path: Path, analyser: str) -> Analysis | None:
    """Return the analysis kept by an earlier run of the same analyser, if there is a whole one."""
    try:
        kept = json.loads(path.read_text())
        findings = Findings(**kept.pop("findings"))
        found = Analysis(findings=findings, **kept)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if found.analyser == analyser else None


def to_json(value: dict[str, Any]) -> bytes:
    """Write a dict so that equal dicts give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode()
