"""The contact sheet: every finished card on one picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tasks.media.store import replacing

_GAP = 16
_MOST = 200  # cards on one sheet: more would be too small to see and take hundreds of megabytes


def contact_sheet(cards: Sequence[Path], target: Path, *, cell_width: int = 400) -> Path:
    """Draw cards (or thumbnails) in a grid, in the order given, and write it to `target` as PNG.

    Args:
        cards: pictures made by this pipeline; at most the first 200 are drawn.
        target: the picture to write; its folder is made.
        cell_width: pixels; height follows at the card's 16:9. Lower it for large collections.

    Returns:
        `target`.

    Raises:
        ValueError: no cards were given.
    """
    if not cards:
        raise ValueError("a contact sheet needs at least one card: none of the files was finished")
    shown = list(cards)[:_MOST]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    cell = (cell_width, cell_width * 9 // 16)
    sheet = Image.new("RGB", (columns * (cell[0] + _GAP) + _GAP, rows * (cell[1] + _GAP) + _GAP), "#d8d5cc")
    for place, card in enumerate(shown):
        row, column = divmod(place, columns)
        paste(sheet, card, cell, (_GAP + column * (cell[0] + _GAP), _GAP + row * (cell[1] + _GAP)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        sheet.save(temporary, format="PNG")
    return target


def paste(sheet: Image.Image, card: Path, cell: tuple[int, int], corner: tuple[int, int]) -> None:
    """Set one picture into its cell, whole and centred."""
    with Image.open(card, formats=["PNG"]) as picture:
        small = picture.convert("RGB")
    small.thumbnail(cell)
    sheet.paste(small, (corner[0] + (cell[0] - small.width) // 2, corner[1] + (cell[1] - small.height) // 2))
