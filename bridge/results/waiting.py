"""Waiting for a result inside of the transaction that makes its job: refused, over whatever backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend

from bridge.job import job_id
from bridge.transaction.waiting import refuse_uncommitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.application import Membership

__all__ = ["Waiting"]


class Waiting(Backend):
    """Mixed over any backend, below what writes rows."""

    _bridge: Membership

    def wait_for_pending(self, result: Any, *args: Any, **options: Any) -> Any:
        """Celery's hook: ``AsyncResult.get``."""
        self.refuse_uncommitted([result.id])
        return super().wait_for_pending(result, *args, **options)

    def iter_native(self, result: Any, *args: Any, **options: Any) -> Any:
        """Celery's hook: ``GroupResult.get`` and the like."""
        self.refuse_uncommitted(one.id for one in result.results)
        return super().iter_native(result, *args, **options)

    def refuse_uncommitted(self, task_ids: Iterable[str]) -> None:
        """Refuse to wait for jobs that nobody else can see yet.

        Raises:
            UncommittedError: one of them was made in a transaction that has not committed.
        """
        refuse_uncommitted(self._bridge.connections, (job_id(task_id) for task_id in task_ids))
