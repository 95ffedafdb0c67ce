"""Ours over the application's own backend: whoever waits there also hears of an end that no worker stores.

A job that is cancelled or expires while it waits in Postgres, or whose last worker has died, ends in its row alone. Who reads its state or
waits for it finds that within a second, and stores it in the application's backend for everybody else.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError, WorkerLostError
from kombu.exceptions import EncodeError

from bridge.errors import BridgeError
from bridge.job import job_id
from bridge.queries import completion, results
from bridge.queries.results import Scope
from bridge.results.meta import Reader
from bridge.results.text import json_text
from bridge.results.writer import RowWriter
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bridge.queries.results import Stored

__all__ = ["MAKE_UP", "Composed", "register"]

log = logging.getLogger("bridge.worker")

MAKE_UP = "bridge.make_up"  # the sweep knows this name
_OF_A_PART = ("id", "task", "group", "group_index", "chord", "ignore_result", "root_id", "parent_id")
_EVERY = 1.0  # seconds between two looks at the rows while somebody waits


def register(app: Any) -> None:
    """Give an application the task that counts the part of a chord whose whole worker died after it was completed."""

    def make_up(part: dict[str, Any]) -> None:
        app.backend.make_up(Context(part))

    app.task(name=MAKE_UP, shared=False, ignore_result=True)(make_up)


class Composed(RowWriter):
    """Mixed over the application's own backend."""

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """What ``AsyncResult`` asks; storing does not come this way."""
        meta: dict[str, Any] = super().get_task_meta(task_id, cache)
        if meta["status"] in states.UNREADY_STATES and self._catch_up([task_id]):
            return dict(super().get_task_meta(task_id, cache))
        return meta

    def wait_for_pending(self, result: Any, *args: Any, **options: Any) -> Any:
        """Celery's hook: ``AsyncResult.get``."""
        options["on_interval"] = self._caught_up([result.id], options.get("on_interval"))
        return super().wait_for_pending(result, *args, **options)

    def iter_native(self, result: Any, *args: Any, **options: Any) -> Any:
        """Celery's hook: ``GroupResult.get`` and the like."""
        options["on_interval"] = self._caught_up([one.id for one in result.results], options.get("on_interval"))
        return super().iter_native(result, *args, **options)

    def untold(self, request: Any) -> str | None:
        """What counting the part of a chord needs that is completed before the application's own backend knows of it; JSON text."""
        if not request.chord:
            return None
        try:
            return json_text({name: request.get(name) for name in _OF_A_PART})
        except EncodeError:
            log.warning("a part of a chord is lost if its worker dies at its commit, its body is no JSON task_id=%s", request.id)
            return None

    def note_told(self, request: Any) -> None:
        """It is counted."""
        if request.chord:
            outcome.patiently(lambda: completion.told(self._bridge.connections.get(), job_id(request.id)))

    def make_up(self, request: Any) -> None:
        """The process of a run was lost after it had completed its job: store its result, and count it in its chord."""
        task_id = request.id
        found = outcome.patiently(lambda: results.many(self._bridge.connections.get(), [job_id(task_id)], Scope()))
        for stored in found:
            ignored = outcome.ignores_result(self.app.tasks[request.task], request)
            self.mark_as_done(task_id, self._rows.value(stored), request=request, store_result=not ignored)
        self.note_told(request)

    @property
    def _rows(self) -> Reader:
        return Reader(self.accept, self.exception_to_python)

    def _caught_up(self, task_ids: list[str], waking: Callable[[], Any] | None) -> Callable[[], None]:
        """What to call whenever a wait is interrupted: the caller's own, and now and then a look at the rows."""
        due = time.monotonic()

        def look() -> None:
            nonlocal due
            if waking is not None:
                waking()
            if time.monotonic() >= due:
                due = time.monotonic() + _EVERY
                self._catch_up(task_ids)

        return look

    def _catch_up(self, task_ids: Iterable[str]) -> bool:
        """Store what the rows say of ends that no worker stores; whether there was one. Postgres being away is no reason to fail."""
        names = {job_id(task_id): task_id for task_id in task_ids}
        try:
            ended = [stored for stored in results.many(self._bridge.connections.get(), list(names), Scope()) if stored.ended]
        except (BridgeError, psycopg.Error):
            return False
        found = False
        for stored in ended:
            state, result = self._unstored_end(stored)
            if state is not None:
                self.store_result(names[stored.id], result, state)
                found = True
        return found

    def _unstored_end(self, stored: Stored) -> tuple[str | None, Any]:
        """State and result of an end that perhaps no worker stores; None for the state of any other."""
        exc = self._rows.exception(stored)
        if isinstance(exc, TaskRevokedError):
            return states.REVOKED, exc
        if isinstance(exc, WorkerLostError):
            return states.FAILURE, exc
        outcome_of = json.loads(stored.outcome) if stored.outcome else {}
        if outcome_of.get("completed") and not outcome_of.get("ignored") and not self._is_over(stored):
            return states.SUCCESS, self._rows.value(stored)
        return None, None

    def _is_over(self, stored: Stored) -> bool:
        """Whether the application would not keep the result any more."""
        kept = timedelta(seconds=self.expires) if self.expires else None
        return kept is not None and stored.done_at is not None and stored.done_at + kept < datetime.now(UTC)
