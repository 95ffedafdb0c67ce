"""Settings of the media pipeline, read from MEDIA_* in the environment."""

from pathlib import Path

from pydantic import Field, HttpUrl, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.media.decode.look import Limits


class MediaSettings(BaseSettings):
    """Where results go, who analyses, and how large a file may be; every default works.

    Read anew for each job, so that a changed environment counts from the next worker start and tests can set their own.
    """

    model_config = SettingsConfigDict(env_prefix="MEDIA_", env_ignore_empty=True)

    output: Path = Path("var/media")  # folder of thumbnails, cards and analyses; one folder a file inside
    root: Path | None = None  # only files below this folder are opened; unset: any file the worker may read

    analysis_url: HttpUrl | None = None  # base URL of an OpenAI-compatible API, as https://host/v1; unset: the local analysis
    analysis_model: str = "gpt-4o-mini"  # name of a model that sees pictures, as the endpoint knows it
    analysis_key: SecretStr | None = None  # bearer token of the endpoint; unset: none is sent
    analysis_timeout: float = Field(default=60.0, gt=0)  # seconds for one answer; above the model's slowest

    max_bytes: int = Field(default=512 * 2**20, gt=0)  # bytes of one file; raise it for long videos
    max_pixels: int = Field(default=50_000_000, gt=0)  # width x height of a picture; one takes about 12 bytes while it is decoded
    max_page_points: float = Field(default=14_400, gt=0)  # longest side of a PDF page; 14,400 (200 inches) is the format's own limit
    max_text_pages: int = Field(default=50, ge=1)  # pages of a PDF whose text is read
    max_text_chars: int = Field(default=20_000, ge=1)  # characters of text kept for the analysis
    max_memory_bytes: int = Field(default=2 * 2**30, ge=2**28)  # address space of the decoding process; below 256 MiB it cannot start
    max_cpu_seconds: int = Field(default=60, ge=1)  # processor time for one file; a file that needs more is refused
    decode_timeout: float = Field(default=300.0, gt=0)  # seconds on the clock for one file; the job is tried again after that
    thumbnail_pixels: int = Field(default=480, ge=16, le=4096)  # longest side of a thumbnail

    @property
    def limits(self) -> Limits:
        """The bounds handed to the decoding process."""
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})
