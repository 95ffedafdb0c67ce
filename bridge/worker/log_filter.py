"""Which job a log record belongs to, for the formatters of the application."""

from __future__ import annotations

import logging

from celery._state import get_current_task

from bridge import tracing
from bridge.job import job_id

__all__ = ["LogFilter"]


class LogFilter(logging.Filter):
    """Gives each record the ids of the run that logs it: ``job_id``, ``run_id`` and ``trace_id``, empty where there is none.

    The handlers of Celery's own loggers have one in every worker that has joined; by hand, ``handler.addFilter(bridge.LogFilter())``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let it pass, with its ids."""
        request = getattr(get_current_task(), "request", None)
        run = getattr(request, "bridge_run", None)
        ids = tracing.current_ids()
        record.job_id = str(job_id(request.id)) if run is not None and request is not None else ""
        record.run_id = str(run.id) if run is not None else ""
        record.trace_id = ids[0] if ids is not None else ""
        return True
