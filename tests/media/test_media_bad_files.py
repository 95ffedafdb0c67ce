"""What an upload may throw at the pipeline: each ends as a permanent error that names the file and the reason."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bridge.errors import PermanentError
from tasks.media import pipeline
from tasks.media.errors import MediaError, TemporaryError
from tasks.media.sandbox import read_answer

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.media.settings import MediaSettings

ENCRYPTION = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (%s) /U (%s) /P -4 >> /ID [<00> <00>] " % (b"o" * 32, b"u" * 32)


def refusal(path: Path, settings: MediaSettings) -> str:
    with pytest.raises(MediaError) as caught:
        pipeline.process(str(path), settings, lambda _fraction, _message: None)
    assert isinstance(caught.value, PermanentError)
    assert str(caught.value).startswith(f"{path.name}: ")
    return str(caught.value)


def limited(settings: MediaSettings, **limits: float) -> MediaSettings:
    return settings.model_copy(update=limits)


def test_an_empty_file_is_called_empty(tmp_path: Path, settings: MediaSettings) -> None:
    (tmp_path / "nothing.png").touch()
    assert refusal(tmp_path / "nothing.png", settings) == "nothing.png: is empty (0 bytes)"


def test_a_text_file_is_no_media(tmp_path: Path, settings: MediaSettings) -> None:
    (tmp_path / "note.jpg").write_text("just words")
    assert "is no image, PDF or video" in refusal(tmp_path / "note.jpg", settings)


@pytest.mark.parametrize(
    ("sample", "name", "claim"),
    [
        ("signet.png", "photo.jpg", "png"),
        ("bees.pdf", "scan.png", "pdf"),
        ("pendulum.mp4", "film.pdf", "mp4"),
        ("meadow.jpg", "a.txt", "jpeg"),
    ],
)
def test_a_file_whose_name_lies_about_its_content_is_mislabelled(
    samples: Path, tmp_path: Path, settings: MediaSettings, sample: str, name: str, claim: str
) -> None:
    shutil.copy(samples / sample, tmp_path / name)
    assert f"is mislabelled: named .{name.split('.')[1]} but its content is {claim}" in refusal(tmp_path / name, settings)


def test_a_file_without_a_suffix_is_told_by_its_content(samples: Path, tmp_path: Path, settings: MediaSettings) -> None:
    shutil.copy(samples / "bees.pdf", tmp_path / "object-17")
    assert pipeline.process(str(tmp_path / "object-17"), settings, lambda _fraction, _message: None)["pages"] == 3


@pytest.mark.parametrize("name", ["meadow.jpg", "signet.png", "bees.pdf", "pendulum.mp4"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_corrupt(samples: Path, tmp_path: Path, settings: MediaSettings, name: str, share: float) -> None:
    content = (samples / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert "corrupt" in refusal(tmp_path / name, settings)


def test_a_video_whose_index_comes_first_is_corrupt_when_it_is_cut_short(tmp_path: Path, settings: MediaSettings) -> None:
    import av

    film = tmp_path / "whole.mp4"
    with av.open(str(film), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for place in range(30):
            frame = av.VideoFrame.from_image(Image.effect_noise((160, 120), 10 + place).convert("RGB"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[: film.stat().st_size * 3 // 4])
    assert "cut short" in refusal(tmp_path / "cut.mp4", settings)


def test_a_film_container_with_sound_alone_is_no_video(tmp_path: Path, settings: MediaSettings) -> None:
    import av

    with av.open(str(tmp_path / "song.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate, frame.pts = 8000, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refusal(tmp_path / "song.mkv", settings) == "song.mkv: is a matroska without a video stream"


def test_an_encrypted_pdf_asks_for_a_password(samples: Path, tmp_path: Path, settings: MediaSettings) -> None:
    content = (samples / "bees.pdf").read_bytes().replace(b"/Root 1 0 R", ENCRYPTION + b"/Root 1 0 R")
    (tmp_path / "secret.pdf").write_bytes(content)
    assert refusal(tmp_path / "secret.pdf", settings) == "secret.pdf: is an encrypted pdf: it needs a password"


def test_a_picture_with_too_many_pixels_is_refused_on_its_header(tmp_path: Path, settings: MediaSettings) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    assert "is too large: 12000 x 12000 pixels, at most 50000000" in refusal(tmp_path / "bomb.png", settings)


def test_a_video_with_too_many_pixels_is_refused_before_decoding(samples: Path, settings: MediaSettings) -> None:
    assert "is too large: 240 x 180 pixels, at most 1000" in refusal(samples / "pendulum.mp4", limited(settings, max_pixels=1000))


def test_a_pdf_with_a_page_of_kilometres_is_refused(samples: Path, tmp_path: Path, settings: MediaSettings) -> None:
    content = (samples / "bees.pdf").read_bytes().replace(b"[0 0 420 595]", b"[0 0 4000000 5]")
    (tmp_path / "road.pdf").write_bytes(content)
    assert "is too large: page 1 is 4000000 x 5 points" in refusal(tmp_path / "road.pdf", settings)


def test_a_file_with_too_many_bytes_is_refused(samples: Path, settings: MediaSettings) -> None:
    assert "is too large: 14356 bytes, at most 9999" in refusal(samples / "meadow.jpg", limited(settings, max_bytes=9999))


def test_a_file_that_needs_more_memory_than_allowed_ends_its_decoder_alone(tmp_path: Path, settings: MediaSettings) -> None:
    Image.new("L", (7000, 7000)).save(tmp_path / "wide.png")
    bounded = limited(settings, max_memory_bytes=2**28)
    assert refusal(tmp_path / "wide.png", bounded) == f"wide.png: needs more than {2**28} bytes of memory to decode"


def test_a_pipe_is_not_waited_for(tmp_path: Path, settings: MediaSettings) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "is no regular file" in refusal(tmp_path / "pipe.jpg", settings)


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path: Path, settings: MediaSettings) -> None:
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n")
    assert "is no image, PDF or video" in refusal(tmp_path / "list.mp4", settings)


def test_a_path_that_leaves_the_root_is_refused(samples: Path, tmp_path: Path, settings: MediaSettings) -> None:
    shutil.copy(samples / "meadow.jpg", tmp_path / "meadow.jpg")
    (tmp_path / "root").mkdir()
    rooted = settings.model_copy(update={"root": tmp_path / "root"})
    with pytest.raises(MediaError, match="lies outside of MEDIA_ROOT"):
        pipeline.process("../meadow.jpg", rooted, lambda _fraction, _message: None)


def test_a_missing_file_is_no_permanent_failure(tmp_path: Path, settings: MediaSettings) -> None:
    with pytest.raises(FileNotFoundError, match=r"late\.jpg"):
        pipeline.process(str(tmp_path / "late.jpg"), settings, lambda _fraction, _message: None)


def test_a_decoder_out_of_time_may_be_tried_again(samples: Path, settings: MediaSettings) -> None:
    with pytest.raises(TemporaryError, match="MEDIA_DECODE_TIMEOUT"):
        pipeline.process(str(samples / "meadow.jpg"), limited(settings, decode_timeout=0.01), lambda _fraction, _message: None)


def test_a_decoder_that_crashes_is_the_files_fault(tmp_path: Path) -> None:
    died = subprocess.run(["sh", "-c", "kill -SEGV $$"], capture_output=True, text=True, check=False)
    with pytest.raises(MediaError, match=r"^odd\.jpg: its decoder was ended by SIGSEGV"):
        read_answer(died, tmp_path / "odd.jpg")


def test_a_decoder_killed_from_outside_is_not_the_files_fault(tmp_path: Path) -> None:
    died = subprocess.run(["sh", "-c", "kill -KILL $$"], capture_output=True, text=True, check=False)
    with pytest.raises(TemporaryError, match=r"^odd\.jpg: decoding failed"):
        read_answer(died, tmp_path / "odd.jpg")


def test_nothing_half_written_stays_behind_after_a_bad_file(samples: Path, settings: MediaSettings) -> None:
    refusal(samples / "broken.jpg", settings)
    assert [path for path in settings.output.rglob("*") if path.is_file()] == []


def test_the_error_survives_the_way_from_a_child_to_its_worker() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a.jpg", "is empty")))  # noqa: S301
    assert (type(error), str(error)) == (MediaError, "a.jpg: is empty")
