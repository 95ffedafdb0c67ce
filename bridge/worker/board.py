"""What a pool's processes tell their main process without a word: the delivery whose outcome each has sent, and has no answer to yet.

It is memory that they share, made before the pool forks. A task is over for the main process when its function has returned; its row runs
until Postgres has taken the outcome, which a busy server may do seconds later. So the main process goes on naming such a run.
"""

from __future__ import annotations

import mmap
import os
import struct
from uuid import UUID

from billiard.process import current_process

__all__ = ["Board"]

_PLACES = 1024  # processes of a pool, at most
_PLACE = struct.Struct("=q16s")  # a process, and the token of its delivery; zeros for none
_NONE = bytes(16)


class Board:
    """One a worker. Where the pool's processes are threads nothing is written here: the main process sees what they know."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PLACES * _PLACE.size)
        self._main = os.getpid()

    def write(self, token: str | None) -> None:
        """This process waits for an answer to the outcome of this delivery; None: for no answer."""
        index = getattr(current_process(), "index", None)
        if index is not None and os.getpid() != self._main:
            _PLACE.pack_into(self._memory, index % _PLACES * _PLACE.size, os.getpid(), UUID(token).bytes if token else _NONE)

    def read(self) -> set[str]:
        """The tokens that living processes have written."""
        entries = (_PLACE.unpack_from(self._memory, place * _PLACE.size) for place in range(_PLACES))
        return {str(UUID(bytes=token)) for process, token in entries if token != _NONE and _is_alive(process)}


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
