"""Run the decoder of one file in a process of its own and give its findings, or the reason why there are none."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tasks.media.decode.kind import Kind
from tasks.media.decode.look import Look
from tasks.media.errors import MediaError, TemporaryError
from tasks.media.settings import MediaSettings

# What a process dies of by its own doing; any other signal came from outside and says nothing about the file.
_FAULTS = {
    getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGXCPU") if hasattr(signal, name)
}


def look_at(path: Path, kind: Kind, thumbnail: Path, settings: MediaSettings) -> Look:
    """Decode one identified file and leave its picture at `thumbnail` (PNG).

    Raises:
        MediaError: the file is at fault, a crash of its decoder included.
        TemporaryError: no answer within `decode_timeout`, or the decoder could not start.
    """
    request = {"path": str(path), "format": kind.format, "thumbnail": str(thumbnail), "limits": asdict(settings.limits)}
    command = [sys.executable, "-m", "tasks.media.decode"]
    try:
        child = subprocess.run(  # noqa: S603 (our own module; the file's name goes through standard input)
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=settings.decode_timeout,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C at a worker's terminal lets the file in hand finish
        )
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"{path.name}: no picture within {settings.decode_timeout:g} s (MEDIA_DECODE_TIMEOUT)") from error
    return read_answer(child, path)


def read_answer(child: "subprocess.CompletedProcess[str]", path: Path) -> Look:
    """Turn the decoder's end into facts or an error.

    Raises:
        MediaError: the decoder gave a reason, or died of the file.
        TemporaryError: the decoder failed by itself.
    """
    if -child.returncode in _FAULTS:
        raise MediaError(path.name, f"its decoder was ended by {signal.Signals(-child.returncode).name}: too large or malformed")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise TemporaryError(f"{path.name}: decoding failed: {last}")
    answer = json.loads(child.stdout)
    if "unreadable" in answer:
        raise MediaError(path.name, answer["unreadable"])
    return Look(**answer["look"])
