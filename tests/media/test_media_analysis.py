"""Analysis by an endpoint: what is asked, what is taken from the answer, and which failures may pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from endpoint import WORDS

from bridge.errors import PermanentError
from tasks.media import pipeline, webhook
from tasks.media.errors import AnalysisRefusedError, TemporaryError
from tasks.media.settings import MediaSettings

if TYPE_CHECKING:
    from pathlib import Path

    from endpoint import Endpoint


@pytest.fixture
def remote(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MediaSettings:
    for name, value in {"URL": endpoint.url, "MODEL": "seer-1", "KEY": "sesame"}.items():
        monkeypatch.setenv(f"MEDIA_ANALYSIS_{name}", value)
    return MediaSettings(output=tmp_path / "output")


def analysis_of(path: Path, settings: MediaSettings) -> dict[str, Any]:
    result = pipeline.process(str(path), settings, lambda _fraction, _message: None)
    return dict(result["analysis"])


def test_the_endpoint_gets_the_picture_and_the_text_and_its_words_are_taken(
    samples: Path, remote: MediaSettings, endpoint: Endpoint
) -> None:
    analysis = analysis_of(samples / "bees.pdf", remote)
    headers, body = endpoint.asked[0]
    assert {name: analysis[name] for name in WORDS} == WORDS
    assert analysis["analyser"] == "seer-1"
    assert (body["path"], body["model"], headers["Authorization"]) == ("/v1/chat/completions", "seer-1", "Bearer sesame")
    text, picture = body["messages"][1]["content"]
    assert "Keeping bees in the city" in text["text"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")


def test_the_same_content_is_asked_about_once_so_that_its_card_stays(samples: Path, remote: MediaSettings, endpoint: Endpoint) -> None:
    first = analysis_of(samples / "signet.png", remote)
    endpoint.content = json.dumps({**WORDS, "title": "Something else"})
    assert analysis_of(samples / "signet.png", remote) == first
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_endpoint_is_left_to_the_jobs_retry_policy(samples: Path, remote: MediaSettings, endpoint: Endpoint, status: int) -> None:
    endpoint.status = status
    with pytest.raises(TemporaryError, match=f"signet.png: .* answered {status}"):
        analysis_of(samples / "signet.png", remote)
    assert len(endpoint.asked) == 1


def test_a_wrong_key_fails_at_once_and_is_not_shown(samples: Path, remote: MediaSettings, endpoint: Endpoint) -> None:
    endpoint.status = 401
    with pytest.raises(AnalysisRefusedError, match="check MEDIA_ANALYSIS_URL") as caught:
        analysis_of(samples / "signet.png", remote)
    assert "sesame" not in str(caught.value) + repr(remote)


def test_an_answer_of_another_form_may_be_better_next_time(samples: Path, remote: MediaSettings, endpoint: Endpoint) -> None:
    endpoint.content = "Here is your description: a signet"
    with pytest.raises(TemporaryError, match="no title, summary and keywords"):
        analysis_of(samples / "signet.png", remote)


def test_an_endpoint_that_is_not_there_is_left_to_the_jobs_retry_policy(samples: Path, settings: MediaSettings) -> None:
    closed = MediaSettings(output=settings.output, analysis_url="http://127.0.0.1:9/v1")
    with pytest.raises(TemporaryError, match="no answer from"):
        analysis_of(samples / "signet.png", closed)


def test_a_webhook_gets_its_message_with_the_secret_of_the_environment(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRON_SECRET", "hush")
    assert webhook.post(endpoint.url, {"alert": "x"}, "CRON_SECRET") == 200
    headers, body = endpoint.asked[0]
    assert (headers["Authorization"], body["alert"]) == ("Bearer hush", "x")


def test_a_webhook_without_its_secret_fails_at_once(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRON_SECRET", raising=False)
    with pytest.raises(PermanentError, match="CRON_SECRET is not set in the worker's environment"):
        webhook.post(endpoint.url, {}, "CRON_SECRET")


@pytest.mark.parametrize(("status", "error"), [(429, TemporaryError), (502, TemporaryError), (403, PermanentError)])
def test_a_webhook_tells_what_may_pass_from_what_stays(endpoint: Endpoint, status: int, error: type[Exception]) -> None:
    endpoint.status = status
    with pytest.raises(error, match=f"answered {status}"):
        webhook.post(endpoint.url, {})
