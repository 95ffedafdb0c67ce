"""Traces by OpenTelemetry, where the process has them: from the call that makes a job, through the drainer, to the run.

An application that traces has imported OpenTelemetry's API and given it a provider. So nothing is imported here, and who does not trace
pays one look into a dictionary. What a job carries is in its message's headers, under the names that the process's propagators use
(``traceparent`` by default): where OpenTelemetry's own instrumentation of Celery puts it, and where SQL can put it, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

__all__ = ["SYSTEM", "bulk_span", "carried", "current_ids", "enqueue_span", "provided", "publish_span"]

SYSTEM = "celery"  # what messaging.system says: the messages are Celery's, whatever carries them
_NAME = "celery-bridge"
_MOST_LINKS = 128  # what the SDK keeps of a span's links


def provided() -> Any:
    """OpenTelemetry's module ``trace``, when this process has a provider of traces; else None."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    return api


def tracer(api: Any) -> Any:
    """Ours, of the provider that there is now."""
    return api.get_tracer(_NAME)


def carried(headers: Mapping[str, Any]) -> Any:
    """The context that a message carries, and nothing of the one around; None when it carries no span.

    Call it only where ``provided`` gives something.
    """
    from opentelemetry import trace  # noqa: PLC0415 - it is there
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.propagate import extract  # noqa: PLC0415

    texts = {name: value for name, value in headers.items() if isinstance(value, str)}  # anybody may have put anything there
    context = extract(texts, context=Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


@contextmanager
def enqueue_span(task: str, queue: str, headers: Mapping[str, Any] | None) -> Iterator[dict[str, Any] | None]:
    """The span of a call that makes a job.

    A call whose headers carry a context already is traced by whoever put it there, and gets no second span.

    Yields:
        the headers that the job gets; None where it needs none.
    """
    api = provided()
    given = dict(headers) if headers else None
    if api is None or (given and carried(given) is not None):
        yield given
        return
    from opentelemetry.propagate import inject  # noqa: PLC0415

    attributes = {
        "messaging.system": SYSTEM, "messaging.operation.name": "enqueue", "messaging.operation.type": "create",
        "messaging.destination.name": queue, "celery.task_name": task,
    }  # fmt: skip
    with tracer(api).start_as_current_span(f"enqueue {task}", kind=api.SpanKind.PRODUCER, attributes=attributes):
        ours = given or {}
        inject(ours)
        yield ours or None


@contextmanager
def bulk_span(jobs: Iterable[Mapping[str, Any]], name: str = "enqueue many") -> Iterator[Iterable[Mapping[str, Any]]]:
    """The span of a call that makes many jobs: they all carry it, but for those that carry a context already.

    Yields:
        the jobs, with the headers that they get.
    """
    api = provided()
    if api is None:
        yield jobs
        return
    from opentelemetry.propagate import inject  # noqa: PLC0415

    attributes = {"messaging.system": SYSTEM, "messaging.operation.name": "enqueue", "messaging.operation.type": "create"}
    with tracer(api).start_as_current_span(name, kind=api.SpanKind.PRODUCER, attributes=attributes) as span:
        ours: dict[str, Any] = {}
        inject(ours)
        count = 0

        def marked() -> Iterator[Mapping[str, Any]]:
            nonlocal count
            for job in jobs:
                count += 1
                given = job.get("headers") or {} if isinstance(job, Mapping) else None
                takes = bool(ours) and isinstance(given, Mapping) and carried(given) is None
                yield {**job, "headers": {**given, **ours}} if takes else job

        yield marked()
        span.set_attribute("messaging.batch.message_count", count)


def publish_span(queue: str, headers: Sequence[str | None]) -> AbstractContextManager[Any]:
    """The span of publishing a shipment, linked to what its jobs carry; nothing where none of them is traced.

    Where all of its jobs are of one trace it belongs to that, else it begins a trace of its own.

    Args:
        queue: the queue of the shipment.
        headers: each job's, as JSON text.
    """
    api = provided()
    contexts = _contexts(headers) if api is not None else []
    if not contexts:
        return nullcontext()
    from opentelemetry.context import Context  # noqa: PLC0415

    spans = {span.span_id: span for context in contexts for span in [api.get_current_span(context).get_span_context()]}
    one = len({span.trace_id for span in spans.values()}) == 1
    attributes = {
        "messaging.system": SYSTEM, "messaging.operation.name": "publish", "messaging.operation.type": "send",
        "messaging.destination.name": queue, "messaging.batch.message_count": len(headers),
    }  # fmt: skip
    span: AbstractContextManager[Any] = tracer(api).start_as_current_span(
        f"publish {queue}", context=contexts[0] if one else Context(), kind=api.SpanKind.CLIENT, attributes=attributes,
        links=[api.Link(span) for span in list(spans.values())[:_MOST_LINKS]],
    )  # fmt: skip
    return span


def _contexts(headers: Sequence[str | None]) -> list[Any]:
    from opentelemetry.propagate import get_global_textmap  # noqa: PLC0415

    names = [json.dumps(name) for name in get_global_textmap().fields]
    texts = [text for text in headers if text and any(name in text for name in names)]
    return [context for text in texts if (context := carried(json.loads(text))) is not None]


def current_ids() -> tuple[str, str] | None:
    """Trace and span that this thread is in, as hexadecimal digits; None without any."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None
