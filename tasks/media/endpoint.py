"""Analysis by an OpenAI-compatible endpoint.

No attempt is repeated here: what is worth repeating is raised as `TemporaryError`, and the job's own retry policy, which
survives this process, decides when.
"""

import base64
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, Field, ValidationError

from tasks.media.decode.look import Look
from tasks.media.errors import AnalysisRefusedError, TemporaryError
from tasks.media.local import shape
from tasks.media.settings import MediaSettings
from tasks.media.words import Words

_INSTRUCTION = (
    "You describe one file for a catalogue. Answer with one JSON object only: "
    '{"title": "at most 80 characters", "summary": "one or two sentences", "keywords": ["up to five words"]}.'
)
_PROMPT_CHARS = 6_000  # of the file's text; titles and summaries need no more
_BUSY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class _Answer(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    summary: str = Field(min_length=1, max_length=2_000)
    keywords: list[str] = Field(default_factory=list, max_length=20)


def ask_endpoint(name: str, look: Look, thumbnail: Path, settings: MediaSettings) -> Words:
    """Have the configured model describe a file from its thumbnail and text.

    Raises:
        TemporaryError: no connection, no answer within `analysis_timeout`, HTTP 408, 425, 429 or 5xx, or an answer of another
            form.
        AnalysisRefusedError: any other HTTP status.
    """
    key = settings.analysis_key.get_secret_value() if settings.analysis_key else ""
    url = f"{str(settings.analysis_url).rstrip('/')}/chat/completions"
    try:
        response = httpx.post(
            url,
            json=request_body(look, thumbnail, settings),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.analysis_timeout,
        )
    except httpx.HTTPError as error:
        raise TemporaryError(f"{name}: no answer from {url}: {error or type(error).__name__}") from error
    check_status(name, url, response)
    return read_words(name, url, response)


def request_body(look: Look, thumbnail: Path, settings: MediaSettings) -> dict[str, Any]:
    """Build the request; temperature 0 because the same file should read the same."""
    picture = base64.b64encode(thumbnail.read_bytes()).decode()
    facts = f"{shape(look)}. Text of the file, if any:\n{look.text[:_PROMPT_CHARS]}"
    content = [
        {"type": "text", "text": facts},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": content}]
    return {"model": settings.analysis_model, "temperature": 0, "response_format": {"type": "json_object"}, "messages": messages}


def check_status(name: str, url: str, response: httpx.Response) -> None:
    """Tell a failure that passes from one that stays.

    Raises:
        TemporaryError: HTTP 408, 425, 429 or 5xx.
        AnalysisRefusedError: any other status than 2xx.
    """
    if response.is_success:
        return
    told = f"{name}: {url} answered {response.status_code} {response.reason_phrase}"
    if response.status_code in _BUSY or response.is_server_error:
        raise TemporaryError(told)
    raise AnalysisRefusedError(f"{told}: check MEDIA_ANALYSIS_URL, MEDIA_ANALYSIS_MODEL and MEDIA_ANALYSIS_KEY")


def read_words(name: str, url: str, response: httpx.Response) -> Words:
    """Take the words out of an answer.

    Raises:
        TemporaryError: the answer is not of the form asked for; models differ from one answer to the next.
    """
    try:
        answer = _Answer.model_validate_json(response.json()["choices"][0]["message"]["content"])
    except (ValidationError, json.JSONDecodeError, LookupError, TypeError) as error:
        raise TemporaryError(f"{name}: {url} answered no title, summary and keywords") from error
    return Words(title=answer.title, summary=answer.summary, keywords=answer.keywords)
