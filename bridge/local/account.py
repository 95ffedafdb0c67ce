"""The account that a local Postgres runs as: Postgres refuses to run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from bridge.errors import ServerError

if TYPE_CHECKING:
    from pathlib import Path

CANDIDATES = ("postgres", "_postgres", "nobody")


class Identity(TypedDict, total=False):
    """What `subprocess` takes to start a program as somebody else; empty for ourselves."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine that root can start a program as."""

    name: str
    uid: int
    gid: int

    def can_run(self, *command: str | Path) -> bool:
        """Whether the command ends with status 0 as this account, from the root folder."""
        quiet = subprocess.DEVNULL
        try:
            done = subprocess.run(  # noqa: S603
                command, check=False, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", timeout=30.0, **identity(self)
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may walk into the folder, all folders above it included."""
        return self.can_run("/bin/sh", "-c", 'cd "$1"', "sh", folder)


def server_account() -> Account | None:
    """Find the account that servers are dropped to.

    Returns:
        None for an ordinary user, who runs them as himself. For root the first of `postgres`, `_postgres` (macOS) and `nobody`.

    Raises:
        ServerError: this is root and the machine has none of them.
    """
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerError(f"postgres cannot run as root and none of the users {', '.join(CANDIDATES)} exists: create one of them")


def identity(account: Account | None) -> Identity:
    """The arguments for `subprocess` that start a program as the account, without our groups; none for None."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}
