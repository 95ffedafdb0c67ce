"""Post a message to a webhook, with a token that only the worker's environment holds."""

import os
from typing import Any

import httpx

from bridge import PermanentError
from tasks.media.errors import TemporaryError

_TIMEOUT = 15.0  # seconds for one answer


def post(url: str, payload: dict[str, Any], token_env: str | None = None) -> int:
    """Post `payload` as JSON.

    Args:
        url: where to; http or https.
        payload: the message.
        token_env: name of the environment variable with the bearer token (as `CRON_SECRET`); the job's row holds the name only.

    Returns:
        The HTTP status, 2xx.

    Raises:
        PermanentError: the variable is not set here, or the receiver refuses (4xx).
        TemporaryError: no answer, 429 or 5xx.
    """
    headers = {"Authorization": f"Bearer {read_token(token_env)}"} if token_env else {}
    try:
        response = httpx.post(url, json=payload, headers=headers, timeout=_TIMEOUT)
    except httpx.UnsupportedProtocol as error:
        raise PermanentError(f"webhook {url!r} is no http or https address") from error
    except httpx.HTTPError as error:
        raise TemporaryError(f"webhook {url}: no answer: {error or type(error).__name__}") from error
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        raise TemporaryError(f"webhook {url} answered {response.status_code}")
    if not response.is_success:
        raise PermanentError(f"webhook {url} answered {response.status_code}: check its address and ${token_env}")
    return response.status_code


def read_token(name: str) -> str:
    """Return the token from the environment.

    Raises:
        PermanentError: it is not set in this worker's environment.
    """
    token = os.environ.get(name, "")
    if not token:
        raise PermanentError(f"{name} is not set in the worker's environment: set it there, it is never read from the database")
    return token
