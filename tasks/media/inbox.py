"""Watch a folder: `python -m tasks.media.inbox FOLDER` makes an upload, and with it a job, of each file that is dropped in.

Looking again every few seconds is enough for people who drop files, and works on network folders, where file system events
do not arrive.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import FrameType

import click
import psycopg

from bridge import settings

_log = logging.getLogger(__name__)


def scan(connection: psycopg.Connection, folder: Path, seen: set[tuple[str, str]], settle: float = 0.0) -> int:
    """Insert an upload for each file that is not there yet, in one transaction.

    Args:
        connection: where to insert; committed at the end.
        folder: looked through with all its subfolders; names that begin with a dot are left out.
        seen: files of earlier scans, by path and version, which need no question to the database; added to.
        settle: seconds that a file must have been left alone; a file that is still being copied waits for a later scan.

    Returns:
        How many uploads were new.
    """
    found = [file for file in versions(folder, settle) if file not in seen]
    new = 0
    with connection.transaction():
        for path, version in found:
            row = connection.execute("select media.add_upload(path => %s, version => %s)", (path, version)).fetchone()
            new += bool(row and row[0])
    seen.update(found)
    return new


def versions(folder: Path, settle: float) -> Iterator[tuple[str, str]]:
    """Give path and version of each settled file; the version changes when the file is written again."""
    before = time.time() - settle
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        with suppress(FileNotFoundError):  # taken away since it was listed
            status = path.stat()
            if status.st_mtime <= before:
                yield str(path.absolute()), f"{status.st_mtime_ns}-{status.st_size}"


def watch(dsn: str, folder: Path, *, interval: float, settle: float, stop: Event) -> None:
    """Scan until `stop` is set, through outages of the database.

    Args:
        dsn: the database.
        folder: as for `scan`.
        interval: seconds between two scans.
        settle: as for `scan`.
        stop: set it to end after the scan in hand.
    """
    seen: set[tuple[str, str]] = set()
    while not stop.is_set():
        try:
            with psycopg.connect(dsn) as connection:
                new = scan(connection, folder, seen, settle)
            if new:
                _log.info("uploads added folder=%s count=%d", folder, new)
        except psycopg.OperationalError as error:
            _log.warning("database unavailable, trying again interval=%g error=%s", interval, error)
        stop.wait(interval)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--once", is_flag=True, help="Scan once, print how many uploads were new, and end.")
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between two scans.")
@click.option("--settle", default=1.0, show_default=True, type=click.FloatRange(min=0), help="Seconds a file must be left alone.")
def main(folder: Path, *, once: bool, interval: float, settle: float) -> None:
    """Make a media job of each file in FOLDER, and of each that is dropped in later."""
    dsn = settings.load().require_database()
    if once:
        with psycopg.connect(dsn) as connection:
            click.echo(f"{scan(connection, folder, set())} new uploads")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    watch(dsn, folder, interval=interval, settle=settle, stop=stop)


if __name__ == "__main__":
    main()
