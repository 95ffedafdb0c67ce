"""PDFs, by PDFium."""

from pathlib import Path
from typing import Any

import pypdfium2
from PIL import Image

from tasks.media.decode.image import thumbnail
from tasks.media.decode.look import Limits, Look, UnreadableError

_TAIL_BYTES = 1024  # readers look for the end mark in the last kilobyte


def read_pdf(path: Path, limits: Limits) -> tuple[Look, Image.Image]:
    """Read one PDF: its page count, its text, its title, and a thumbnail of the first page.

    Raises:
        UnreadableError: encrypted, cut short, damaged, without pages, or with a page too large.
    """
    check_end(path)
    try:
        document = pypdfium2.PdfDocument(path)
        return read_document(document, limits)
    except pypdfium2.PdfiumError as error:
        raise UnreadableError(reason_of(error)) from error


def check_end(path: Path) -> None:
    """Refuse a PDF without its end mark: PDFium would quietly repair it and give fewer pages.

    Raises:
        UnreadableError: the mark is not in the last kilobyte.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        if b"%%EOF" not in file.read():
            raise UnreadableError("is a corrupt pdf: it is cut short, the end mark is missing")


def reason_of(error: Exception) -> str:
    """Turn PDFium's words into a reason."""
    if "password" in str(error).lower():
        return "is an encrypted pdf: it needs a password"
    return f"is a corrupt pdf: {error}"


def read_document(document: Any, limits: Limits) -> tuple[Look, Image.Image]:
    """Gather facts and the picture of the first page of an open document.

    Raises:
        UnreadableError: no pages, or a first page larger than `max_page_points`.
    """
    pages = len(document)
    if pages == 0:
        raise UnreadableError("is a corrupt pdf: it has no pages")
    first = document[0]
    width, height = first.get_size()
    if not 0 < min(width, height) <= max(width, height) <= limits.max_page_points:
        raise UnreadableError(f"is too large: page 1 is {width:.0f} x {height:.0f} points, at most {limits.max_page_points:.0f}")
    scale = limits.thumbnail_pixels / max(width, height)
    picture = first.render(scale=scale).to_pil()
    title = document.get_metadata_dict().get("Title", "")
    text = read_text(document, limits)
    look = Look(kind="pdf", format="pdf", width=round(width), height=round(height), pages=pages, title=title, text=text)
    return look, thumbnail(picture, limits)


def read_text(document: Any, limits: Limits) -> str:
    """Return the text of the first `max_text_pages` pages, cut at `max_text_chars`."""
    parts: list[str] = []
    room = limits.max_text_chars
    for index in range(min(len(document), limits.max_text_pages)):
        text = document[index].get_textpage().get_text_bounded()[:room]
        parts.append(text)
        room -= len(text)
        if room <= 0:
            break
    return "\n".join(parts)
