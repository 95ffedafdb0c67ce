"""Where the servers of tests keep their data."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def _quick_place() -> Path:
    """Where servers keep what no test outlives: in memory where there is room. The seven hundred files of a database cost a disk 0.3 s."""
    memory, room = Path("/dev/shm"), 4 << 30  # noqa: S108 - a folder with a random name is made in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > room else Path("/tmp")  # noqa: S108


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """A short folder that also the user whom root drops to can walk through; pytest's own are closed to him."""
    folder = Path(tempfile.mkdtemp(prefix="br-", dir=place))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where the servers of a test run keep their data."""
    with _folder(_quick_place()) as folder:
        yield folder


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """A folder on a disk, where the kind of the file system or its lasting matters."""
    with _folder(Path("/tmp")) as folder:  # noqa: S108
        yield folder
