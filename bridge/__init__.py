"""Keep Celery, make Postgres the truth: jobs are rows, stock Celery workers run them.

The public names are imported when first used, so that ``import bridge`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.application import install
    from bridge.batches import cancel_batch, create_batch, get_batch, seal_batch, wait_batch
    from bridge.bulk import Counts, Filter, cancel_jobs, select_jobs
    from bridge.callbacks import remove_callback, set_channel, set_notifier, set_webhook, try_callback
    from bridge.changes import move, move_jobs, reschedule, reschedule_jobs, set_priority, set_priority_jobs
    from bridge.circuit import breakers, remove_breaker, reset_breaker, set_breaker
    from bridge.client import cancel, enqueue, enqueue_many, get, history, retry, wait
    from bridge.completion import complete
    from bridge.dead import discard, discard_jobs, redrive, redrive_jobs
    from bridge.errors import BridgeError, DeadlineExceeded, PermanentError
    from bridge.figures import metrics
    from bridge.flows import add_dependency, enqueue_flow, workflow
    from bridge.gate import limits, remove_limit, set_limit
    from bridge.job import Event, Job, LogLine, Status
    from bridge.monitoring import (
        acknowledge_alert,
        alert_rules,
        alerts,
        check_alerts,
        collect_metrics,
        health,
        remove_alert,
        resolve_alert,
        set_alert,
        test_alert,
    )
    from bridge.notes import checkpoint, log, logs, progress, save_checkpoint
    from bridge.policies import remove_retry, retry_policies, set_retry
    from bridge.queues import drain, pause, pauses, resume, set_bundle, set_window
    from bridge.retention import cleanup, cleanups, create_archive, remove_retention, retentions, set_archive, set_retention, upkeep
    from bridge.roles import allow_task, disallow_task, rights, task_rules
    from bridge.schedule_log import schedule_history, schedule_stats, slow_schedules, too_often_schedules
    from bridge.schedules import next_runs, pause_schedule, resume_schedule, run_schedule, schedule, unschedule
    from bridge.secrets import secret
    from bridge.tenancy import disable_tenants, enable_tenants, tenants
    from bridge.transaction.current import join_sessions, using
    from bridge.worker.log_filter import LogFilter
    from bridge.worker.log_handler import LogHandler

__all__ = [
    "BridgeError",
    "Counts",
    "DeadlineExceeded",
    "Event",
    "Filter",
    "Job",
    "LogFilter",
    "LogHandler",
    "LogLine",
    "PermanentError",
    "Status",
    "__version__",
    "acknowledge_alert",
    "add_dependency",
    "alert_rules",
    "alerts",
    "allow_task",
    "breakers",
    "cancel",
    "cancel_batch",
    "cancel_jobs",
    "check_alerts",
    "checkpoint",
    "cleanup",
    "cleanups",
    "collect_metrics",
    "complete",
    "create_archive",
    "create_batch",
    "disable_tenants",
    "disallow_task",
    "discard",
    "discard_jobs",
    "drain",
    "enable_tenants",
    "enqueue",
    "enqueue_flow",
    "enqueue_many",
    "get",
    "get_batch",
    "health",
    "history",
    "install",
    "join_sessions",
    "limits",
    "log",
    "logs",
    "metrics",
    "move",
    "move_jobs",
    "next_runs",
    "pause",
    "pause_schedule",
    "pauses",
    "progress",
    "redrive",
    "redrive_jobs",
    "remove_alert",
    "remove_breaker",
    "remove_callback",
    "remove_limit",
    "remove_retention",
    "remove_retry",
    "reschedule",
    "reschedule_jobs",
    "reset_breaker",
    "resolve_alert",
    "resume",
    "resume_schedule",
    "retentions",
    "retry",
    "retry_policies",
    "rights",
    "run_schedule",
    "save_checkpoint",
    "schedule",
    "schedule_history",
    "schedule_stats",
    "seal_batch",
    "secret",
    "select_jobs",
    "set_alert",
    "set_archive",
    "set_breaker",
    "set_bundle",
    "set_channel",
    "set_limit",
    "set_notifier",
    "set_priority",
    "set_priority_jobs",
    "set_retention",
    "set_retry",
    "set_webhook",
    "set_window",
    "slow_schedules",
    "task_rules",
    "tenants",
    "test_alert",
    "too_often_schedules",
    "try_callback",
    "unschedule",
    "upkeep",
    "using",
    "wait",
    "wait_batch",
    "workflow",
]

__version__ = "0.2.0"

_HOMES = {
    "install": "bridge.application",
    **dict.fromkeys(["cancel_batch", "create_batch", "get_batch", "seal_batch", "wait_batch"], "bridge.batches"),
    **dict.fromkeys(["remove_callback", "set_channel", "set_notifier", "set_webhook", "try_callback"], "bridge.callbacks"),
    **dict.fromkeys(["Counts", "Filter", "cancel_jobs", "select_jobs"], "bridge.bulk"),
    **dict.fromkeys(["cancel", "enqueue", "enqueue_many", "get", "history", "retry", "wait"], "bridge.client"),
    **dict.fromkeys(["discard", "discard_jobs", "redrive", "redrive_jobs"], "bridge.dead"),
    **dict.fromkeys(["BridgeError", "DeadlineExceeded", "PermanentError"], "bridge.errors"),
    **dict.fromkeys(["add_dependency", "enqueue_flow", "workflow"], "bridge.flows"),
    **dict.fromkeys(["limits", "remove_limit", "set_limit"], "bridge.gate"),
    **dict.fromkeys(["Event", "Job", "LogLine", "Status"], "bridge.job"),
    **dict.fromkeys(
        [
            "acknowledge_alert",
            "alert_rules",
            "alerts",
            "check_alerts",
            "collect_metrics",
            "health",
            "remove_alert",
            "resolve_alert",
            "set_alert",
            "test_alert",
        ],
        "bridge.monitoring",
    ),
    **dict.fromkeys(["allow_task", "disallow_task", "rights", "task_rules"], "bridge.roles"),
    "secret": "bridge.secrets",
    **dict.fromkeys(["disable_tenants", "enable_tenants", "tenants"], "bridge.tenancy"),
    **dict.fromkeys(["checkpoint", "log", "logs", "progress", "save_checkpoint"], "bridge.notes"),
    **dict.fromkeys(["remove_retry", "retry_policies", "set_retry"], "bridge.policies"),
    **dict.fromkeys(["move", "move_jobs", "reschedule", "reschedule_jobs", "set_priority", "set_priority_jobs"], "bridge.changes"),
    **dict.fromkeys(["breakers", "remove_breaker", "reset_breaker", "set_breaker"], "bridge.circuit"),
    **dict.fromkeys(["drain", "pause", "pauses", "resume", "set_bundle", "set_window"], "bridge.queues"),
    **dict.fromkeys(
        ["cleanup", "cleanups", "create_archive", "remove_retention", "retentions", "set_archive", "set_retention", "upkeep"],
        "bridge.retention",
    ),
    **dict.fromkeys(
        ["next_runs", "pause_schedule", "resume_schedule", "run_schedule", "schedule", "unschedule"],
        "bridge.schedules",
    ),
    **dict.fromkeys(["schedule_history", "schedule_stats", "slow_schedules", "too_often_schedules"], "bridge.schedule_log"),
    "LogFilter": "bridge.worker.log_filter",
    "LogHandler": "bridge.worker.log_handler",
    "metrics": "bridge.figures",
    **dict.fromkeys(["join_sessions", "using"], "bridge.transaction.current"),
    "complete": "bridge.completion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
