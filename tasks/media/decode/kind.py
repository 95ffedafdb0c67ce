"""What a file is, by its first bytes; its name is only a claim that is checked afterwards."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tasks.media.decode.look import Limits, UnreadableError

HEAD_BYTES = 1024  # a PDF's mark may stand this far in; every other mark is in the first 16


@dataclass(frozen=True, slots=True)
class Kind:
    """One format: its family (image, pdf, video), its name, its decoder's name, and the suffixes that tell the truth."""

    family: str
    format: str
    decoder: str
    suffixes: tuple[str, ...]


JPEG = Kind("image", "jpeg", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"))
PNG = Kind("image", "png", "PNG", (".png", ".apng"))
GIF = Kind("image", "gif", "GIF", (".gif",))
WEBP = Kind("image", "webp", "WEBP", (".webp",))
BMP = Kind("image", "bmp", "BMP", (".bmp", ".dib"))
TIFF = Kind("image", "tiff", "TIFF", (".tif", ".tiff"))
AVIF = Kind("image", "avif", "AVIF", (".avif", ".avifs"))
PDF = Kind("pdf", "pdf", "pdf", (".pdf", ".ai"))
MP4 = Kind("video", "mp4", "mov", (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2"))
MATROSKA = Kind("video", "matroska", "matroska", (".mkv", ".webm"))
AVI = Kind("video", "avi", "avi", (".avi",))
OGG = Kind("video", "ogg", "ogg", (".ogv", ".ogg"))
FLV = Kind("video", "flv", "flv", (".flv",))

# Demuxers that follow links (playlists) and decoders that run programs (EPS) are absent on purpose: an upload is untrusted.
KINDS = (JPEG, PNG, GIF, WEBP, BMP, TIFF, AVIF, PDF, MP4, MATROSKA, AVI, OGG, FLV)
_MARKS: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"\x89PNG\r\n\x1a\n", PNG),
    (0, b"GIF87a", GIF),
    (0, b"GIF89a", GIF),
    (8, b"WEBP", WEBP),
    (0, b"BM", BMP),
    (0, b"II*\x00", TIFF),
    (0, b"MM\x00*", TIFF),
    (4, b"moov", MP4),
    (4, b"mdat", MP4),
    (4, b"wide", MP4),
    (0, b"\x1a\x45\xdf\xa3", MATROSKA),
    (8, b"AVI ", AVI),
    (0, b"OggS", OGG),
    (0, b"FLV\x01", FLV),
)


def detect(head: bytes) -> Kind:
    """Name the format that the first `HEAD_BYTES` of a file show.

    Raises:
        UnreadableError: the file is empty, or of no format that this pipeline reads.
    """
    if not head:
        raise UnreadableError("is empty (0 bytes)")
    if head[4:8] == b"ftyp":
        return detect_brand(head[8:32])
    for offset, mark, kind in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return kind
    if b"%PDF-" in head:
        return PDF
    raise UnreadableError(f"is no image, PDF or video that can be read (it begins with {head[:8]!r})")


def detect_brand(brands: bytes) -> Kind:
    """Tell the pictures from the films among files of the ISO base media format, by the brands they name.

    Raises:
        UnreadableError: HEIF with a codec that Pillow lacks.
    """
    if b"avif" in brands or b"avis" in brands:
        return AVIF
    if any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1")):
        raise UnreadableError("is a heif image, a format that is not read")
    return MP4


def identify(path: Path, limits: Limits) -> Kind:
    """Check that the path is a file of bearable size whose name tells the truth, and say what it holds.

    Raises:
        UnreadableError: no regular file, empty, too large, of a foreign format, or mislabelled.
        OSError: the file is not there or may not be read; another attempt may find it.
    """
    status = os.stat(path)  # noqa: PTH116 (a pipe must be known before anything opens it)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("is no regular file")
    if status.st_size > limits.max_bytes:
        raise UnreadableError(f"is too large: {status.st_size} bytes, at most {limits.max_bytes} are read")
    with path.open("rb") as file:
        kind = detect(file.read(HEAD_BYTES))
    check_label(kind, path.suffix)
    return kind


def check_label(kind: Kind, suffix: str) -> None:
    """Compare the content with what the file's suffix claims; a file without a suffix claims nothing.

    Raises:
        UnreadableError: the suffix belongs to another format.
    """
    if suffix and suffix.lower() not in kind.suffixes:
        raise UnreadableError(f"is mislabelled: named {suffix} but its content is {kind.format}")
