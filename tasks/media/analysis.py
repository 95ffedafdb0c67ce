"""Say what a file shows: by the configured endpoint, else by the local analyser, and always by whom."""

from dataclasses import dataclass, field
from pathlib import Path

from tasks.media.decode.look import Look
from tasks.media.endpoint import ask_endpoint
from tasks.media.local import Findings, examine
from tasks.media.settings import MediaSettings


@dataclass(frozen=True, slots=True)
class Analysis:
    """What is known of one file's content.

    `analyser` is `local` or the model's name; `title`, `summary` and `keywords` are its words. `findings` are measured here
    whoever wrote the words.
    """

    analyser: str
    title: str
    summary: str
    findings: Findings
    keywords: list[str] = field(default_factory=list)


def analyser_name(settings: MediaSettings) -> str:
    """Name who would analyse under these settings."""
    return settings.analysis_model if settings.analysis_url else "local"


def analyse(name: str, look: Look, thumbnail: Path, settings: MediaSettings) -> Analysis:
    """Analyse one decoded file from its facts and its thumbnail.

    Raises:
        AnalysisRefusedError: the endpoint refuses such requests.
        TemporaryError: the endpoint is busy, failing, slow, or answered something else than asked.
    """
    findings, words = examine(look, thumbnail)
    if settings.analysis_url:
        words = ask_endpoint(name, look, thumbnail, settings)
    return Analysis(analyser=analyser_name(settings), title=words.title, summary=words.summary, keywords=words.keywords, findings=findings)
