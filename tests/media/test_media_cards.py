"""Cards: the same content gives the same card, different contents never do."""

from __future__ import annotations

import shutil
import tempfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.media import pipeline
from tasks.media.analysis import analyse
from tasks.media.card import HEIGHT, WIDTH, draw_card
from tasks.media.decode.image import read_image
from tasks.media.decode.kind import PNG
from tasks.media.settings import MediaSettings

if TYPE_CHECKING:
    from tasks.media.settings import MediaSettings as Settings

SIDE = 4
PIXELS = st.binary(min_size=3 * SIDE * SIDE, max_size=3 * SIDE * SIDE)


def card_of(content: bytes) -> bytes:
    chosen = MediaSettings()
    with tempfile.TemporaryDirectory() as folder:
        path, thumbnail = Path(folder, "a.png"), Path(folder, "t.png")
        path.write_bytes(content)
        look, picture = read_image(path, PNG, chosen.limits)
        picture.save(thumbnail)
        return draw_card(look, analyse("a.png", look, thumbnail, chosen), thumbnail, sha256(content).hexdigest())


def png(pixels: bytes) -> bytes:
    buffer = BytesIO()
    Image.frombytes("RGB", (SIDE, SIDE), pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@settings(max_examples=30, deadline=None)
@given(PIXELS, PIXELS)
def test_cards_are_equal_exactly_when_the_pictures_are(one: bytes, other: bytes) -> None:
    assert (card_of(png(one)) == card_of(png(other))) == (one == other)


@settings(max_examples=10, deadline=None)
@given(PIXELS)
def test_pictures_that_differ_in_one_bit_have_different_cards(pixels: bytes) -> None:
    assert card_of(png(pixels)) != card_of(png(bytes([pixels[0] ^ 1]) + pixels[1:]))


def test_the_same_content_under_another_name_gives_the_same_card(samples: Path, tmp_path: Path, settings: Settings) -> None:
    shutil.copy(samples / "bees.pdf", tmp_path / "other name.pdf")
    first = pipeline.process(str(samples / "bees.pdf"), settings, lambda _fraction, _message: None)
    card = Path(first["card"]).read_bytes()
    Path(first["card"]).unlink()
    again = pipeline.process(str(tmp_path / "other name.pdf"), settings, lambda _fraction, _message: None)
    assert again == first
    assert Path(again["card"]).read_bytes() == card


def test_a_card_is_a_picture_with_its_facts_beside_it(samples: Path, settings: Settings) -> None:
    result = pipeline.process(str(samples / "meadow.jpg"), settings, lambda _fraction, _message: None)
    with Image.open(result["card"]) as card:
        assert card.size == (WIDTH, HEIGHT)
    facts = Path(result["card"]).with_suffix(".json").read_text()
    assert '"title": "Meadow in June"' in facts
