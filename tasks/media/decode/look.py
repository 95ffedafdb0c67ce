"""What decoding needs to know and what it finds."""

from dataclasses import dataclass, field


class UnreadableError(Exception):
    """The file is at fault and no further attempt can help; the text is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold before anything is decoded; `MediaSettings` documents each."""

    max_bytes: int
    max_pixels: int
    max_page_points: float
    max_text_pages: int
    max_text_chars: int
    max_memory_bytes: int
    max_cpu_seconds: int
    thumbnail_pixels: int


@dataclass(frozen=True, slots=True)
class Look:
    """The facts of one file.

    `kind` is image, pdf or video; `format` the content's own name (jpeg, pdf, mp4). Sizes are pixels as displayed, for a PDF
    the first page in points. `pages` is set for PDFs, `duration` (seconds) and `streams` for videos.
    """

    kind: str
    format: str
    width: int
    height: int
    pages: int | None = None
    duration: float | None = None
    streams: list[str] = field(default_factory=list)
    title: str = ""
    text: str = ""
    exif: dict[str, str] = field(default_factory=dict)
