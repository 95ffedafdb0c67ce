"""Where a process of ours ends, or freezes, exactly between two of its steps.

The product has no hook for this: drainer.py, children.py and main_process.py wrap its functions. A file that LAB_BOUNDARY names
is looked for at each boundary; when it is there and names this boundary, it is removed and the process sends itself the signal
that it names.
"""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "LAB_BOUNDARY"
DRAINER = {
    "claiming": "the claim has run and has not committed",
    "claimed": "it has committed, nothing is sent",
    "sent": "the broker has been sent the messages, its confirmation is not read",
    "confirmed": "it is, the mark has not run",
    "marking": "the mark has run and has not committed",
    "marked": "it has",
}
CHILD = {
    "starting": "the start has run and has not committed",
    "started": "it has, the task's first line has not run",
    "returned": "the task is over, its finish is not sent",
    "finished": "it is, its answer is not read",
    "failed": "a failure is noted",
}
MAIN = {
    "taken": "a message has come, no process of the pool has been given it",
    "reporting": "a report of what is held is not sent",
    "reported": "it is, its answer has had no effect",
    "leaving": "the worker ends, what it has not begun is not given back",
}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def order_file(folder: Path, slot: str) -> Path:
    """The file that processes of this slot look for."""
    return folder / f"{slot}.boundary"


def write_order(file: Path, boundary: str, action: str) -> str:
    """Have the process that passes the boundary next end or freeze; the order, unlike any other."""
    order = f"{boundary} {action} {uuid.uuid4()}"
    fresh = file.with_suffix(".new")
    fresh.write_text(order)
    fresh.rename(file)
    return order


def passed(boundary: str) -> None:
    """Obey the order, if there is one for this boundary. Of several processes that meet it, one does."""
    if not armed(boundary):
        return
    file = Path(os.environ[VARIABLE])
    try:
        action = file.read_text().split()[1]
        file.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), SIGNALS[action])


def armed(boundary: str) -> bool:
    """Whether there is an order for this boundary."""
    try:
        return Path(os.environ[VARIABLE]).read_text().split()[0] == boundary
    except (FileNotFoundError, KeyError):
        return False


@contextmanager
def uncommitted(connection: Any, boundary: str) -> Iterator[Callable[[object], None]]:
    """Hold a statement's commit back where there is an order for before it; what this gives is to be called with its answer."""
    if not armed(boundary):
        yield lambda _answer: None
        return
    with connection.transaction():
        yield lambda answer: passed(boundary) if answer else None


def then(function: Callable[..., Any], boundary: str) -> Callable[..., Any]:
    """Have a boundary after a function."""

    def call(*args: Any, **options: Any) -> Any:
        answer = function(*args, **options)
        passed(boundary)
        return answer

    return call


def first(function: Callable[..., Any], boundary: str) -> Callable[..., Any]:
    """Have a boundary before a function."""

    def call(*args: Any, **options: Any) -> Any:
        passed(boundary)
        return function(*args, **options)

    return call
