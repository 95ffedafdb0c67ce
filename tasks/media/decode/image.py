"""Images, by Pillow."""

from pathlib import Path

from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from tasks.media.decode.kind import Kind
from tasks.media.decode.look import Limits, Look, UnreadableError

_EXIF_CHARS = 200  # of one value: a maker's note may fill pages


def read_image(path: Path, kind: Kind, limits: Limits) -> tuple[Look, Image.Image]:
    """Read one image: its size as displayed, its EXIF, and a thumbnail.

    The pixel count is checked on the header, before memory is taken.

    Raises:
        UnreadableError: too many pixels, or data that cannot be decoded to the last row.
    """
    Image.MAX_IMAGE_PIXELS = None  # this module's own limit follows, with its reason in the error
    try:
        with Image.open(path, formats=[kind.decoder]) as image:
            check_pixels(*image.size, limits)
            exif = image.getexif()
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"is a corrupt {kind.format}: {error}") from error
    width, height = upright.size
    facts = readable_exif(exif)
    look = Look(kind="image", format=kind.format, width=width, height=height, exif=facts, title=facts.get("ImageDescription", ""))
    return look, thumbnail(upright, limits)


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Refuse a picture that would take too much memory once decoded.

    Raises:
        UnreadableError: no size, or more than `max_pixels`.
    """
    if width <= 0 or height <= 0:
        raise UnreadableError(f"has no picture size ({width} x {height})")
    if width * height > limits.max_pixels:
        raise UnreadableError(f"is too large: {width} x {height} pixels, at most {limits.max_pixels} are decoded")


def thumbnail(image: Image.Image, limits: Limits) -> Image.Image:
    """Shrink to the thumbnail's longest side, on white where the picture is transparent."""
    # Sixteen-bit greys are clipped by a plain conversion; they are scaled to eight bits first.
    small = image.point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image
    rgba = small.convert("RGBA")
    rgba.thumbnail((limits.thumbnail_pixels, limits.thumbnail_pixels))
    ground = Image.new("RGBA", rgba.size, "white")
    ground.alpha_composite(rgba)
    return ground.convert("RGB")


def readable_exif(exif: Image.Exif) -> dict[str, str]:
    """Return the EXIF values that are text or numbers, by name; binary ones are left out."""
    entries = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    named = {ExifTags.TAGS.get(tag): value for tag, value in entries.items()}
    return {
        name: str(value).strip("\x00 ")[:_EXIF_CHARS]
        for name, value in sorted((name, value) for name, value in named.items() if name)
        if isinstance(value, str | int | float | IFDRational)
    }
