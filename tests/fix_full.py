"""Small filesystems of a test's own, to be full for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from bridge.local.account import server_account

if TYPE_CHECKING:
    from pathlib import Path

_PIECE = 1 << 16  # bytes; what is left when the rest is taken is less


REMEDY = "run as root, in a container with --cap-add SYS_ADMIN"


class NoDiskError(Exception):
    """This process may mount nothing."""


class SmallDisk:
    """A filesystem in memory, mounted on a folder that the account of our servers owns; gone after `remove`.

    Raises:
        NoDiskError: it may not be mounted.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        account = server_account()
        who = [f"uid={account.uid}", f"gid={account.gid}"] if account else [f"uid={os.getuid()}", f"gid={os.getgid()}"]
        options = ",".join([f"size={size}", "mode=0700", *who])
        done = subprocess.run([*_as_root(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True)
        if done.returncode:
            folder.rmdir()
            raise NoDiskError(f"no right to mount a small filesystem here: {REMEDY}")

    def fill(self) -> None:
        """Take all the room that there is."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(_PIECE)) == _PIECE:
                    pass
            except OSError:
                return

    def free(self) -> None:
        """Give it back."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it; what uses it still is not waited for."""
        subprocess.run([*_as_root(), "umount", "--lazy", str(self.folder)], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _as_root() -> list[str]:
    return [] if os.getuid() == 0 or not shutil.which("sudo") else ["sudo", "-n"]
