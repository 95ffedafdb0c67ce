"""How a driver talks to an application over HTTP, and what it takes down to be compared: every answer, less what no two runs share."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0  # seconds
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ENDED = {"SUCCESS", "FAILURE", "REVOKED"}


@dataclass
class Conversation:
    """Asks by ``send(method, path, data)``, which gives the status and what the answer's JSON says."""

    send: Callable[[str, str, Any], tuple[int, Any]]
    answers: list[Any] = field(default_factory=list)

    def ask(self, method: str, path: str, data: Any = None) -> Any:
        """Send one request, take its answer down, and return what its JSON says."""
        status, said = self.send(method, path, data)
        self._note(f"{method} {path}", status, said)
        return said

    def until(self, path: str, right: Callable[[Any], bool]) -> Any:
        """Get a page again and again until it says the right thing; only that answer is taken down."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, said = self.send("GET", path, None)
            if right(said):
                self._note(f"GET {path}", status, said)
                return said
            if time.monotonic() > deadline:
                raise TimeoutError(f"GET {path} still says {said}")
            time.sleep(0.02)

    def ended(self, path: str) -> Any:
        """Poll a task's page until the task has ended."""
        return self.until(path, lambda said: said["state"] in _ENDED)

    def _note(self, request: str, status: int, said: Any) -> None:
        self.answers.append(json.loads(_ID.sub("<id>", json.dumps([request, status, said]))))

    def report(self) -> None:
        """Print everything that was taken down."""
        json.dump(self.answers, sys.stdout)


def shown(result: Any) -> dict[str, Any]:
    """What such applications' pages tell of a task: its state, its value or its error."""
    state = result.state  # once: it may go on between two questions
    value = result.result if state in _ENDED else None
    error = value if isinstance(value, BaseException) else None
    return {
        "id": result.id,
        "state": state,
        "value": value if error is None else None,
        "error": error and [type(error).__name__, str(error)],
        "traceback": bool(result.traceback) if state in _ENDED and not isinstance(error, Reject) else None,  # a known difference
    }
