"""What the media tests ask for: settings with a folder of their own, and a database with the pipeline's schema."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from endpoint import Endpoint, serve_endpoint

from bridge import schema
from tasks.media.settings import MediaSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tasks/media/samples"


def install_pipeline(dsn: str) -> None:
    schema.install_pipeline(dsn, ROOT / "tasks/media/sql")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample files, without the script that makes them and what Python keeps of it."""
    folder = tmp_path_factory.mktemp("samples")
    for path in SAMPLES.iterdir():
        if path.is_file() and path.suffix != ".py":
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> MediaSettings:
    return MediaSettings(output=tmp_path / "output")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A running HTTP server that answers what the test tells it to."""
    with serve_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def media_dsn(dsn: str) -> str:
    """DSN of a new database with both schemas, as runbooks see it: search_path is media, bridge, public."""
    install_pipeline(dsn)
    return psycopg.conninfo.make_conninfo(dsn, options="-c search_path=media,bridge,public")


@pytest.fixture
def install_media(media_dsn: str) -> Callable[[], None]:
    """Installs the pipeline once more."""
    return partial(install_pipeline, media_dsn)


@pytest.fixture
def media(media_dsn: str) -> Iterator[psycopg.Connection]:
    """A session that commits each statement, on a new database with both schemas."""
    with psycopg.connect(media_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cron_media(cron_dsn: str) -> Iterator[psycopg.Connection]:
    """A session on the database that pg_cron runs in, with both schemas."""
    with psycopg.connect(cron_dsn, autocommit=True) as connection:
        connection.execute("drop schema if exists media cascade")
        install_pipeline(cron_dsn)
        connection.execute("set search_path = media, bridge, public")
        yield connection
        connection.execute("select media.remove_cron_entries()")
        connection.execute("drop schema media cascade")
