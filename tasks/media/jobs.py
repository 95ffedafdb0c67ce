"""The Celery tasks of the media pipeline: the job kinds that an upload can ask for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import bridge
from tasks.app import app
from tasks.media import pipeline, webhook
from tasks.media.settings import MediaSettings
from tasks.media.sheet import contact_sheet

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def job(kind: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Register a function as the Celery task `media.<kind>`, keeping its types, which Celery's own decorator hides."""
    register: Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]] = app.task(name=f"media.{kind}")
    return register


def report(fraction: float, words: str) -> None:
    """Say how far a file is, on the job's row and as a line of its log."""
    bridge.progress(fraction, words)
    bridge.log(words)


@job("process")
def process(*, path: str, upload_id: str | None = None) -> dict[str, Any]:
    """Make thumbnail, analysis and card of one uploaded file.

    Args:
        path: the file; relative to `MEDIA_ROOT` where that is set.
        upload_id: the row of `media.uploads`; it comes back in the result.

    Returns:
        `upload_id`, `type`, `format`, `width`, `height`, `pages` or `duration`, `title`, `analysis`, and the paths `thumbnail`
        and `card`.

    Raises:
        MediaError: the file is at fault; the job fails at once.
        AnalysisRefusedError: the analysis endpoint refuses such requests; the job fails at once.
        TemporaryError, OSError: tried again by the job's retry policy.
    """
    return {"upload_id": upload_id, **pipeline.process(path, MediaSettings(), report)}


@job("thumbnail")
def thumbnail(*, path: str, upload_id: str | None = None) -> dict[str, Any]:
    """Make the thumbnail of one uploaded file; arguments and errors as `process`."""
    return {"upload_id": upload_id, **pipeline.thumbnail(path, MediaSettings(), report)}


@job("analysis")
def analysis(*, path: str, upload_id: str | None = None) -> dict[str, Any]:
    """Analyse one uploaded file; arguments and errors as `process`."""
    return {"upload_id": upload_id, **pipeline.analysis(path, MediaSettings(), report)}


@job("card")
def card(*, path: str, upload_id: str | None = None) -> dict[str, Any]:
    """Make the card of one uploaded file, with the thumbnail and analysis that it shows; arguments and errors as `process`."""
    return {"upload_id": upload_id, **pipeline.process(path, MediaSettings(), report)}


@job("contact_sheet")
def sheet(*, cards: Sequence[str], target: str) -> str:
    """Draw finished cards on one picture and return its path; see `sheet.contact_sheet`.

    Args:
        cards: paths that `process` returned as `card`.
        target: the picture to write.

    Raises:
        ValueError: no cards were given.
    """
    return str(contact_sheet([Path(card) for card in cards], Path(target)))


@job("webhook")
def notify(*, url: str, payload: dict[str, Any], token_env: str | None = None) -> int:
    """Post a JSON payload to a webhook and return the HTTP status; see `webhook.post`."""
    return webhook.post(url, payload, token_env)
