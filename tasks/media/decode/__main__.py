"""`python -m tasks.media.decode`: read one request from standard input, answer with one JSON object.

The request names the file, its format, where the thumbnail goes, and the limits. The answer is `{"look": …}` or
`{"unreadable": reason}`; anything else that happens (a crash, a kill) has no answer, and the parent tells it by the exit code.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.media.decode.kind import KINDS, Kind
from tasks.media.decode.look import Limits, Look, UnreadableError

if TYPE_CHECKING:
    from PIL import Image


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    limits = Limits(**request["limits"])
    confine(limits)
    sys.stdout.write(json.dumps(answer(request, limits)))


def answer(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Decode the file of a request and write its thumbnail as PNG."""
    kind = next(kind for kind in KINDS if kind.format == request["format"])
    try:
        look, picture = decode(Path(request["path"]), kind, limits)
        picture.save(request["thumbnail"], format="PNG")
        return {"look": asdict(look)}
    except UnreadableError as error:
        return {"unreadable": str(error)}
    except MemoryError:
        return {"unreadable": f"needs more than {limits.max_memory_bytes} bytes of memory to decode"}


def confine(limits: Limits) -> None:
    """Bound this process's memory and processor time; the system ends it when it asks for more."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 (absent on Windows)

    bounds = {resource.RLIMIT_CPU: limits.max_cpu_seconds, resource.RLIMIT_CORE: 0}
    if sys.platform != "darwin":  # refused there; the pixel and byte limits still hold
        bounds[resource.RLIMIT_AS] = limits.max_memory_bytes
    for what, bound in bounds.items():
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def decode(path: Path, kind: Kind, limits: Limits) -> "tuple[Look, Image.Image]":
    """Hand the file to its decoder; each is imported only when its kind of file comes."""
    if kind.family == "image":
        from tasks.media.decode.image import read_image  # noqa: PLC0415

        return read_image(path, kind, limits)
    if kind.family == "pdf":
        from tasks.media.decode.pdf import read_pdf  # noqa: PLC0415

        return read_pdf(path, limits)
    from tasks.media.decode.video import read_video  # noqa: PLC0415

    return read_video(path, kind, limits)


if __name__ == "__main__":
    main()
