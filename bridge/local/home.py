"""The folders that local servers keep things in: where they are, who may enter, who holds them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bridge.errors import ServerError

if TYPE_CHECKING:
    from bridge.local.account import Account

LONGEST_SOCKET = 103  # bytes of a socket's path; macOS allows no more, Linux four more
LONGEST_NAME = len(".s.PGSQL.65535.lock")  # the longest name we put into a folder of sockets


def state_home() -> Path:
    """Where `bridge up` and `bridge demo` keep their state: BRIDGE_HOME, else the platform's place for it.

    That is `$XDG_STATE_HOME/celery-bridge` (`~/.local/state/celery-bridge`) for a user. Root's home is closed to the user that
    Postgres runs as, so for root it is `/var/lib/celery-bridge`.
    """
    chosen = os.environ.get("BRIDGE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/celery-bridge" if Path("/var/lib").is_dir() else "/var/tmp/celery-bridge-root")  # noqa: S108
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/celery-bridge"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "celery-bridge"


def open_home(home: Path) -> Path:
    """Make the home folder, with what is above it, when it is missing; one that exists keeps its mode.

    A new one is closed to others; root's lets them pass through, not look, because the dropped user must get to his folder.
    """
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return home


def private_folder(folder: Path, account: Account | None) -> Path:
    """Make a folder with mode 0700 for the account, or see that it is one.

    Raises:
        ServerError: it is somebody else's, open to others, no folder, or closed to the account; it stays as it is.
    """
    owner = os.geteuid() if account is None else account.uid
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account is not None:
            os.chown(folder, account.uid, account.gid)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise ServerError(f"{folder} is not a folder of user id {owner} with mode 0700: remove it, or choose another place")
    if account is not None and not account.can_enter(folder):
        raise ServerError(f"user {account.name} cannot walk into {folder}: choose a place outside closed folders with BRIDGE_HOME")
    return folder


def socket_folder(folder: Path) -> Path:
    """Choose where the sockets of a server in this folder are: inside it, or in /tmp when their path is too long or too odd.

    Too long is what the kernel refuses; odd is what a URL would quote, which not every client undoes.
    The same folder always gives the same answer, so that another process finds the sockets.
    """
    inside = folder / "run"
    if len(os.fsencode(inside)) + 1 + LONGEST_NAME <= LONGEST_SOCKET and quote(str(inside)) == str(inside):
        return inside
    mark = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(f"/tmp/bridge-{os.geteuid()}-{mark}")  # noqa: S108 - private_folder checks whose it is


class FolderLock:
    """Says that a living process holds a folder; the kernel lets go of it when that process dies, however it dies.

    Args:
        path: the lock file; it stays behind and means nothing by itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False when another holder lives, whose words `read` gives."""
        if self._file is not None:
            return True
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        self.write(f"pid {os.getpid()}")
        return True

    def is_held(self) -> bool:
        """Whether another holder lives."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def write(self, text: str) -> None:
        """Replace what others read while we hold the lock."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)

    def read(self) -> str:
        """What the holder wrote; empty when there was none."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return ""

    def release(self) -> None:
        """Let go; safe to repeat."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
