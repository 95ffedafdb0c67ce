"""The card: one picture that stands for one file.

A strip at its foot draws the file's SHA-256 as 256 squares, so two different files never share a card; everything else on
it comes from the file's content alone, so the same file gives the same bytes again, under any name.
"""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tasks.media.analysis import Analysis
from tasks.media.decode.look import Look
from tasks.media.local import shape

WIDTH, HEIGHT = 640, 360
_EDGE = 16
_PICTURE = (256, 256)  # room for the thumbnail
_SQUARE = 9  # pixels; 64 columns of them are 576
_COLUMNS = 64
_INK, _PAPER, _QUIET = "#1d1d1f", "#fbfaf7", "#6b6b70"
_TEXT_LEFT = _EDGE * 2 + _PICTURE[0]
_TEXT_WIDTH = WIDTH - _TEXT_LEFT - _EDGE


def draw_card(look: Look, analysis: Analysis, thumbnail: Path, digest: str) -> bytes:
    """Draw the card of a file as PNG; `digest` is the SHA-256 of its content in hexadecimal."""
    card = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    draw = ImageDraw.Draw(card)
    paste_thumbnail(card, thumbnail)
    write_words(draw, look, analysis)
    for place, colour in enumerate(analysis.findings.colours):
        left = _TEXT_LEFT + place * 32
        draw.rectangle((left, 244, left + 27, 271), fill=colour, outline=_QUIET)
    draw_fingerprint(draw, digest)
    buffer = BytesIO()
    card.save(buffer, format="PNG")
    return buffer.getvalue()


def paste_thumbnail(card: Image.Image, thumbnail: Path) -> None:
    """Set the thumbnail into its corner, centred."""
    with Image.open(thumbnail, formats=["PNG"]) as picture:
        small = picture.convert("RGB")
    small.thumbnail(_PICTURE)
    card.paste(small, (_EDGE + (_PICTURE[0] - small.width) // 2, _EDGE + (_PICTURE[1] - small.height) // 2))


def write_words(draw: ImageDraw.ImageDraw, look: Look, analysis: Analysis) -> None:
    """Write title, shape, summary and analyser, each in its size, as far as they fit."""
    top = float(_EDGE)
    blocks = ((analysis.title, 22, 2, _INK), (shape(look), 14, 2, _QUIET), (analysis.summary, 14, 6, _INK))
    for text, size, lines, colour in blocks:
        font = ImageFont.load_default(size)
        for line in wrap(text, font, lines):
            draw.text((_TEXT_LEFT, top), line, font=font, fill=colour)
            top += size * 1.3
        top += 6
    draw.text((_TEXT_LEFT, 222), f"analysis: {analysis.analyser}", font=ImageFont.load_default(12), fill=_QUIET)


def wrap(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", lines: int) -> list[str]:
    """Break a text into at most `lines` lines that fit the card's text column; a word too long for a line is cut."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= _TEXT_WIDTH:
            rows[-1] = longer
        else:
            rows.append(word)
    return [cut(row, font) for row in rows if row][:lines]


def cut(row: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
    """Shorten one line until it fits."""
    while font.getlength(row) > _TEXT_WIDTH:
        row = row[:-1]
    return row


def draw_fingerprint(draw: ImageDraw.ImageDraw, digest: str) -> None:
    """Draw each bit of the digest as one square."""
    for place, bit in enumerate(f"{int(digest, 16):0256b}"):
        row, column = divmod(place, _COLUMNS)
        left, top = (WIDTH - _COLUMNS * _SQUARE) // 2 + column * _SQUARE, 300 + row * _SQUARE
        if bit == "1":
            draw.rectangle((left, top, left + _SQUARE - 2, top + _SQUARE - 2), fill=_INK)
