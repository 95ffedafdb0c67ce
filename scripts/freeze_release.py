# ruff: noqa: INP001 - a script, no package
"""Keep a release as it is, for the tests of upgrading: what a process of that release needs to run, as one wheel in tests/releases.

The wheel holds the package, its SQL and its entry points. It is made from a commit, not from the files that lie around, and is the
same byte for byte whenever it is made again.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ROOT / "tests/releases"


def build(revision: str, folder: Path) -> Path:
    """Build the wheel of a commit, tag or branch into a folder; its path."""
    packed = subprocess.run(["git", "archive", "--format=tar", revision], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603, S607
    with tempfile.TemporaryDirectory() as checkout:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(checkout, filter="data")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=checkout, check=True, capture_output=True)  # noqa: S603
    return next(folder.glob("*.whl"))


@click.command()
@click.argument("revision")
@click.option("--again", is_flag=True, help="Write over the release if it is kept already.")
def main(revision: str, *, again: bool) -> None:
    """Freeze REVISION, the tag or commit of a release, into tests/releases.

    \b
    Example:
      python scripts/freeze_release.py v0.1.0
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(revision, Path(folder))
        kept = RELEASES / wheel.name
        if kept.exists() and not again:
            raise click.ClickException(f"{kept.relative_to(ROOT)} is kept already: a release is frozen once; --again writes over it")
        RELEASES.mkdir(exist_ok=True)
        kept.write_bytes(wheel.read_bytes())
    click.echo(f"{kept.relative_to(ROOT)} {kept.stat().st_size} bytes")


if __name__ == "__main__":
    main()
