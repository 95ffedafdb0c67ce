"""The analyser that needs no service: it counts words and looks at pixels, and says so."""

import colorsys
from dataclasses import dataclass, field
from pathlib import Path

import imagehash
from PIL import Image, ImageStat

from tasks.media.decode.look import Look
from tasks.media.words import Words, first_line, frequent_words

# Where a hue (0 to 1 around the circle, red at both ends) stops to have its name.
_HUES = (
    (0.04, "red"),
    (0.11, "orange"),
    (0.19, "yellow"),
    (0.45, "green"),
    (0.54, "teal"),
    (0.71, "blue"),
    (0.83, "purple"),
    (0.95, "pink"),
)
_BLACK_BELOW, _BROWN_BELOW, _WHITE_ABOVE = 0.16, 0.6, 0.88  # value: the strongest of red, green and blue, 0 to 1
_GREY_BELOW = 0.14  # saturation
_PALETTE = 5  # colours kept
_DARK, _BRIGHT = 0.3, 0.7  # of full brightness


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured: dominant colours (`#rrggbb`, most first), brightness 0 to 1, the perceptual hash, text and EXIF."""

    colours: list[str]
    colour_names: list[str]
    brightness: float
    perceptual_hash: str
    words: int
    excerpt: str = ""
    exif: dict[str, str] = field(default_factory=dict)


def examine(look: Look, thumbnail: Path) -> tuple[Findings, Words]:
    """Measure a thumbnail and the facts beside it, and put the result into words."""
    with Image.open(thumbnail, formats=["PNG"]) as picture:
        picture.load()
    colours = dominant_colours(picture)
    findings = Findings(
        colours=[f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours],
        colour_names=list(dict.fromkeys(colour_name(colour) for colour in colours)),
        brightness=round(ImageStat.Stat(picture.convert("L")).mean[0] / 255, 3),
        perceptual_hash=str(imagehash.dhash(picture)),
        words=len(look.text.split()),
        excerpt=" ".join(look.text.split())[:300],
        exif=look.exif,
    )
    return findings, describe(look, findings)


def dominant_colours(picture: Image.Image) -> list[tuple[int, int, int]]:
    """Return up to five colours that cover most of the picture, the widest first."""
    small = picture.convert("RGB").resize((64, 64), Image.Resampling.BOX).quantize(_PALETTE, Image.Quantize.MAXCOVERAGE)
    palette = small.getpalette() or []
    # Colours of equal share are ordered by index, so that the same picture gives the same list.
    shares = sorted(small.getcolors() or [], key=lambda share: (-share[0], share[1]))
    starts = [3 * int(index) for _, index in shares if isinstance(index, int)]
    return [(palette[start], palette[start + 1], palette[start + 2]) for start in starts]


def colour_name(colour: tuple[int, int, int]) -> str:
    """Name a colour: a grey by its brightness, any other by its hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    if value < _BLACK_BELOW:
        return "black"
    if saturation < _GREY_BELOW:
        return "white" if value > _WHITE_ABOVE else "grey"
    name = next((name for end, name in _HUES if hue < end), "red")
    return "brown" if name == "orange" and value < _BROWN_BELOW else name


def describe(look: Look, findings: Findings) -> Words:
    """Put measurements into a title, a summary and keywords."""
    tone = "dark" if findings.brightness < _DARK else "bright" if findings.brightness > _BRIGHT else "mid-toned"
    colours = " and ".join(findings.colour_names[:2])
    title = look.title.strip() or first_line(look.text) or f"{tone} {look.kind} in {colours}"
    parts = [f"{shape(look)}; mostly {colours}, {tone}"]
    if findings.words:
        parts.append(f"{findings.words} words, beginning with “{first_line(look.text, 60)}”")
    if camera := " ".join(filter(None, (look.exif.get("Make"), look.exif.get("Model")))):
        parts.append(f"taken with {camera}")
    summary = "; ".join(parts) + " (local analysis)"
    return Words(title=title, summary=summary, keywords=frequent_words(look.text) or findings.colour_names[:3])


def shape(look: Look) -> str:
    """Say in a few words how large a file's content is, as `3 pages of 595 x 842 points`."""
    size = f"{look.width} x {look.height}"
    if look.kind == "pdf":
        return f"{look.pages} page{'s' if look.pages != 1 else ''} of {size} points"
    if look.kind == "video":
        return f"{look.format} video of {look.duration:g} s, {size} pixels"
    return f"{look.format} picture, {size} pixels"
