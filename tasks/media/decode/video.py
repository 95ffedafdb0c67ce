"""Videos, by PyAV."""

from pathlib import Path
from typing import Any

import av
from PIL import Image

from tasks.media.decode.image import check_pixels, thumbnail
from tasks.media.decode.kind import Kind
from tasks.media.decode.look import Limits, Look, UnreadableError

_POSTER_AT = 0.1  # of the duration: the very first picture is often black


def read_video(path: Path, kind: Kind, limits: Limits) -> tuple[Look, Image.Image]:
    """Read one video: duration, streams, size, and a poster frame.

    Raises:
        UnreadableError: no video stream, too many pixels, packets missing, or no picture that decodes.
    """
    # Links to other files or hosts inside a container stay unfollowed.
    options = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,ogg,flv"}
    try:
        with av.open(str(path), format=kind.decoder, options=options) as container:
            return read_container(container, kind, limits)
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableError(f"is a corrupt {kind.format}: {getattr(error, 'strerror', None) or error}") from error


def read_container(container: Any, kind: Kind, limits: Limits) -> tuple[Look, Image.Image]:
    """Gather facts and the poster frame of an open container.

    Raises:
        UnreadableError: as for `read_video`.
    """
    if not container.streams.video:
        raise UnreadableError(f"is a {kind.format} without a video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    check_pixels(context.width, context.height, limits)
    context.options = {"max_pixels": str(limits.max_pixels)}  # a later frame may claim another size
    context.thread_count = 1
    seconds = check_packets(container, stream)
    picture = poster(container, stream)
    look = Look(
        kind="video",
        format=kind.format,
        width=context.width,
        height=context.height,
        duration=round(container.duration / av.time_base if container.duration else seconds, 3),
        streams=[describe(one) for one in container.streams],
        title=container.metadata.get("title", ""),
    )
    return look, thumbnail(picture, limits)


def check_packets(container: Any, stream: Any) -> float:
    """Walk over the video's packets without decoding them, so that a file cut short is seen; return where the last one ends.

    Raises:
        UnreadableError: a packet is damaged, or fewer are there than the index announces.
    """
    count, end = 0, 0.0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnreadableError(f"is corrupt: packet {count} of its video stream is damaged or cut short")
        if packet.size and packet.pts is not None:
            count += 1
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if count < stream.frames:
        raise UnreadableError(f"is cut short: {count} of {stream.frames} video packets are there")
    return end


def poster(container: Any, stream: Any) -> Image.Image:
    """Decode one picture near a tenth of the duration, else the first one.

    Raises:
        UnreadableError: the stream holds no picture.
    """
    for position in (int((container.duration or 0) * _POSTER_AT), 0):
        container.seek(position)
        for frame in container.decode(stream):
            picture: Image.Image = frame.to_image()
            return picture
    raise UnreadableError("holds no picture that decodes")


def describe(stream: Any) -> str:
    """Say in a few words what a stream is, as `video h264 160x120 10 fps`."""
    context = stream.codec_context
    if context is None:
        return str(stream.type)
    if stream.type == "video":
        return f"video {context.name} {context.width}x{context.height} {float(stream.average_rate or 0):g} fps"
    if stream.type == "audio":
        return f"audio {context.name} {context.sample_rate} Hz"
    return f"{stream.type} {context.name}"
