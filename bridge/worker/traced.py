"""The span of a run, in the process that runs it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS

from bridge import tracing
from bridge.job import job_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bridge.worker.fence import Run

__all__ = ["run_span"]

_OUTCOMES = {SUCCESS: "succeeded", FAILURE: "failed", RETRY: "retried", IGNORED: "ignored", REJECTED: "rejected"}
_UID = "bridge-trace"


def run_span(task: Any, request: Any, run: Run) -> AbstractContextManager[Callable[[Any], None]]:
    """The span of one attempt, below that of the call that made the job; attempts of a job are of one trace.

    Where OpenTelemetry's instrumentation of Celery is at work, its span is the run's, and is told what only we know.

    Yields:
        what the tracer's verdict is to be told to.
    """
    api = tracing.provided()
    if api is None:
        return nullcontext(_nothing)
    if _is_instrumented():
        # Connected after theirs, so that their span has begun.
        signals.task_prerun.connect(_describe, dispatch_uid=_UID, weak=False)
        return nullcontext(_nothing)
    return _own_span(api, task, request, run)


def _nothing(info: Any) -> None:
    """Nobody traces."""


def _is_instrumented() -> bool:
    import sys  # noqa: PLC0415

    module = sys.modules.get("opentelemetry.instrumentation.celery")
    return module is not None and bool(getattr(module.CeleryInstrumentor(), "is_instrumented_by_opentelemetry", False))


@contextmanager
def _own_span(api: Any, task: Any, request: Any, run: Run) -> Iterator[Callable[[Any], None]]:
    attributes = {
        "messaging.system": tracing.SYSTEM, "messaging.operation.name": "run", "messaging.operation.type": "process",
        "celery.task_name": task.name, **_facts(request, run),
    }  # fmt: skip
    context = tracing.carried(request)
    with tracing.tracer(api).start_as_current_span(
        f"run {task.name}", context=context, kind=api.SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield lambda info: _judge(api, span, info)


def _facts(request: Any, run: Run) -> dict[str, Any]:
    """What we know of a run."""
    route = request.get("delivery_info") or {}
    return {
        "messaging.destination.name": route.get("routing_key") or "", "messaging.message.id": request["id"],
        "bridge.job.id": str(job_id(request["id"])), "bridge.run.id": str(run.id), "bridge.attempt": request.get("bridge_attempt") or 1,
    }  # fmt: skip


def _judge(api: Any, span: Any, info: Any) -> None:
    """Say on a span how its run ended. The run is over by now, and an exception that cannot be told is no fault of it."""
    with suppress(Exception):
        _tell_end(api, span, info)


def _tell_end(api: Any, span: Any, info: Any) -> None:
    state = SUCCESS if info is None else info.state  # Celery says nothing of what went well
    span.set_attribute("bridge.outcome", _OUTCOMES.get(state, "unknown"))
    if state == FAILURE:
        span.set_attribute("error.type", type(info.retval).__qualname__)
        span.set_status(api.Status(api.StatusCode.ERROR, str(info.retval)))
        if isinstance(info.retval, BaseException):
            span.record_exception(info.retval)


def _describe(task: Any = None, **_: Any) -> None:
    """Tell what we know to the span that OpenTelemetry's instrumentation has begun."""
    api, request = tracing.provided(), getattr(task, "request", None)
    run = getattr(request, "bridge_run", None)
    if api is not None and request is not None and run is not None:
        api.get_current_span().set_attributes(_facts(request.__dict__, run))
