"""What is found in the files that ship with the pipeline."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tasks.media import pipeline
from tasks.media.errors import MediaError
from tasks.media.samples import shipped
from tasks.media.sheet import contact_sheet

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.media.settings import MediaSettings


def process(path: Path, settings: MediaSettings) -> dict[str, Any]:
    return pipeline.process(str(path), settings, lambda _fraction, _message: None)


def test_the_photo_has_its_size_its_exif_and_its_title(samples: Path, settings: MediaSettings) -> None:
    result = process(samples / "meadow.jpg", settings)
    assert (result["type"], result["format"], result["width"], result["height"]) == ("image", "jpeg", 640, 427)
    assert result["title"] == "Meadow in June"
    assert result["analysis"]["findings"]["exif"]["Model"] == "Brush 1"
    assert {"blue", "green"} <= set(result["analysis"]["findings"]["colour_names"])


def test_the_transparent_picture_is_seen_on_white(samples: Path, settings: MediaSettings) -> None:
    result = process(samples / "signet.png", settings)
    assert (result["format"], result["width"], result["height"]) == ("png", 320, 320)
    assert result["analysis"]["findings"]["colours"][0] == "#ffffff"


def test_the_pdf_has_three_pages_their_text_and_its_title(samples: Path, settings: MediaSettings) -> None:
    result = process(samples / "bees.pdf", settings)
    assert (result["type"], result["pages"], result["width"], result["height"]) == ("pdf", 3, 420, 595)
    assert result["title"] == "Bees on the roof"
    assert result["analysis"]["findings"]["excerpt"].startswith("Keeping bees in the city A hive on a flat roof")
    assert {"colony", "honey"} <= set(result["analysis"]["keywords"])


def test_the_video_has_its_duration_its_stream_and_a_poster(samples: Path, settings: MediaSettings) -> None:
    result = process(samples / "pendulum.mp4", settings)
    assert (result["type"], result["width"], result["height"], result["duration"]) == ("video", 240, 180, 2.0)
    assert result["streams"] == ["video mpeg4 240x180 10 fps"]
    with Image.open(result["thumbnail"]) as poster:
        assert poster.size == (240, 180)


def test_the_corrupt_file_is_named_with_its_reason(samples: Path, settings: MediaSettings) -> None:
    with pytest.raises(MediaError, match=r"^broken\.jpg: is a corrupt jpeg: .*truncated"):
        process(samples / "broken.jpg", settings)


def test_local_analysis_says_that_it_is_local(samples: Path, settings: MediaSettings) -> None:
    analysis = process(samples / "signet.png", settings)["analysis"]
    assert analysis["analyser"] == "local"
    assert analysis["summary"].endswith("(local analysis)")


def test_progress_rises_while_a_file_is_processed(samples: Path, settings: MediaSettings) -> None:
    seen: list[float] = []
    pipeline.process(str(samples / "signet.png"), settings, lambda fraction, _message: seen.append(fraction))
    assert seen == sorted(seen)
    assert len(seen) == 3


def test_all_finished_cards_fit_on_one_contact_sheet(samples: Path, settings: MediaSettings, tmp_path: Path) -> None:
    names = ("bees.pdf", "meadow.jpg", "pendulum.mp4")
    results = [process(samples / name, settings) for name in names]
    sheet = contact_sheet([settings.output / result["card"] for result in results], tmp_path / "sheets/sheet.png")
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 416 + 16, 2 * 241 + 16)


def test_a_contact_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one card"):
        contact_sheet([], tmp_path / "sheet.png")


def test_the_samples_are_small_and_of_every_kind() -> None:
    assert [path.name for path in shipped()] == ["bees.pdf", "broken.jpg", "meadow.jpg", "pendulum.mp4", "signet.png"]
    assert sum(path.stat().st_size for path in shipped()) < 300_000


def test_making_the_samples_again_gives_the_same_bytes(tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        subprocess.run([sys.executable, "-m", "tasks.media.samples.make", str(folder)], check=True)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
