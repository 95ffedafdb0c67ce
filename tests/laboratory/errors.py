"""What can go wrong with the laboratory itself, as opposed to what it finds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Found = TypeVar("Found")
POLL = 0.05  # seconds between two looks


class LabError(Exception):
    """The laboratory cannot do what it was asked for: no verdict on the product follows from it."""


def wait_until(look: Callable[[], Found], timeout: float = 20.0, what: str = "") -> Found:
    """Call `look` until it gives something true and return that.

    Raises:
        LabError: it has not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout:g} s: {what or look!r}; last seen: {found!r}")
        time.sleep(POLL)
    return found
