"""Build the sample files: `python -m tasks.media.samples.make [FOLDER]`; the same libraries give the same bytes again.

Drawn here and not collected, so that their licence is ours and each shows one thing: EXIF, transparency, several pages of
text, a short film, and a file that no reader can open.
"""

import math
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import av
from PIL import ExifTags, Image, ImageDraw

_PAGES = (
    ("Keeping bees in the city", "A hive on a flat roof needs morning sun, water nearby and a screen against the wind."),
    ("The year of a colony", "In spring the queen lays; in summer the colony gathers honey; in winter it keeps warm."),
    ("Harvest", "Honey is ripe when the bees have closed the combs. Leave the colony enough for the winter."),
)
_FRAMES, _RATE = 20, 10


def main(folder: Path) -> None:
    """Write every sample into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    meadow = draw_meadow()
    files = {
        "meadow.jpg": meadow,
        "signet.png": draw_signet(),
        "bees.pdf": write_pdf(),
        "pendulum.mp4": film_pendulum(),
        "broken.jpg": meadow[: len(meadow) // 3],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def draw_meadow() -> bytes:
    """Draw a meadow under a sky, a JPEG with EXIF."""
    picture = Image.new("RGB", (640, 427))
    draw = ImageDraw.Draw(picture)
    for row in range(427):
        share = row / 427
        sky, grass = (90 + int(120 * share), 160 + int(60 * share), 235), (60, int(190 - 90 * share), 50)
        draw.line((0, row, 640, row), fill=sky if row < 250 + 20 * math.sin(share) else grass)
    draw.ellipse((470, 40, 550, 120), fill=(255, 222, 90))
    for place in range(40):
        left, top = (place * 97) % 630, 265 + (place * 53) % 150
        draw.ellipse((left, top, left + 8, top + 8), fill=(240, 70 + place * 4, 90))
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "Meadow in June"
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Sample", "Brush 1"
    exif[ExifTags.Base.DateTime] = "2024:06:21 10:00:00"
    return encode(picture, "JPEG", quality=80, exif=exif)


def draw_signet() -> bytes:
    """Draw interlaced rings on transparent ground, a PNG."""
    picture = Image.new("RGBA", (320, 320), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for place, colour in enumerate(("navy", "teal", "gold", "maroon")):
        left = 20 + place * 50
        draw.ellipse((left, left, left + 130, left + 130), outline=colour, width=14)
    return encode(picture, "PNG")


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    """Return a picture's bytes in a format."""
    buffer = BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def write_pdf() -> bytes:
    """Write a PDF of three A5 pages, each with a heading and a sentence, by hand: no library writes one without the date."""
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(len(_PAGES)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(_PAGES)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *pdf_pages(),
        "<< /Title (Bees on the roof) >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def pdf_pages() -> Iterator[str]:
    """Give each page's object and its content's, in turn."""
    for number, (heading, sentence) in enumerate(_PAGES):
        half = sentence.rfind(" ", 0, len(sentence) // 2)
        head = f"/F1 22 Tf 40 520 Td ({heading}) Tj"
        lines = f"/F1 12 Tf 0 -40 Td ({sentence[:half]}) Tj 0 -18 Td ({sentence[half:].strip()}) Tj"
        stream = f"BT {head} {lines} ET 0.9 0.7 0.1 rg {60 + 90 * number} 120 120 160 re f"
        yield (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 595] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        yield f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"


def film_pendulum() -> bytes:
    """Film a pendulum for two seconds, an MP4 with one video stream."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # mpeg4 and not h264: the encoder is part of every build of the library
        stream = container.add_stream("mpeg4", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 240, 180, "yuv420p", 300_000
        stream.codec_context.thread_count = 1
        for place in range(_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(draw_swing(place))))
        container.mux(stream.encode())
    return buffer.getvalue()


def draw_swing(place: int) -> Image.Image:
    """Draw one picture of the film."""
    picture = Image.new("RGB", (240, 180), (245, 240, 225))
    draw = ImageDraw.Draw(picture)
    angle = 0.9 * math.cos(2 * math.pi * place / _FRAMES)
    end = (120 + 120 * math.sin(angle), 20 + 120 * math.cos(angle))
    draw.line((120, 20, *end), fill=(60, 60, 60), width=3)
    draw.ellipse((end[0] - 18, end[1] - 18, end[0] + 18, end[1] + 18), fill=(200, 60, 40))
    return picture


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
