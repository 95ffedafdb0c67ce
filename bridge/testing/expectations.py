"""What a test says about the jobs that have been made; a failure shows those that there are."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from celery import _state
from kombu.exceptions import EncodeError
from kombu.message import Message
from kombu.serialization import dumps

from bridge import settings as environment
from bridge.job import Job, Status
from bridge.queries import selection, testing
from bridge.queries.connection import connect
from bridge.testing.applications import target_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.queries.connection import Connection
    from bridge.queries.testing import Body

__all__ = ["assert_enqueued", "enqueued", "refute_enqueued"]

_MOST = 10_000  # jobs looked at
_SHOWN = 20  # jobs that a failure lists
_ANY_SERIALIZER = {"application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "application/json", "application/data"}


def enqueued(
    task: Any = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    status: Status | str | None = None,
    connection: Any = None,
) -> list[Job]:
    """The jobs that have been made, whatever has become of them, oldest first. Each argument leaves out others.

    Args:
        task: a task, or its name.
        args: exactly these positional arguments, as the call gave them.
        kwargs: exactly these keyword arguments.
        queue: the queue.
        status: where the job is in its life, for example ``scheduled``.
        connection: see them as this transaction does: psycopg 3's, Django's, or a SQLAlchemy Session or Connection. None means the
            transaction around a test of Django's; elsewhere what is committed in the database of ``BRIDGE_DATABASE_URL``.
    """
    return _Wanted.of(task, args, kwargs, queue, status).among(_all(connection))


def assert_enqueued(
    task: Any = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    status: Status | str | None = None,
    times: int | None = 1,
    connection: Any = None,
) -> list[Job]:
    """Insist on jobs like this.

    Args:
        task: as in ``enqueued``, like all that are not named here.
        args: as there.
        kwargs: as there.
        queue: as there.
        status: as there.
        times: how many of them there must be; None is satisfied by one or more.
        connection: as there.

    Returns:
        These jobs.

    Raises:
        AssertionError: there are more or fewer; it lists the jobs that there are.
    """
    __tracebackhide__ = True
    wanted = _Wanted.of(task, args, kwargs, queue, status)
    made = _all(connection)
    found = wanted.among(made)
    if len(found) != times and not (times is None and found):
        raise AssertionError(_failure(f"expected {wanted} {'at least once' if times is None else _times(times)}", found, made))
    return found


def refute_enqueued(
    task: Any = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    status: Status | str | None = None,
    connection: Any = None,
) -> None:
    """Insist that there is no job like this; the arguments are those of ``enqueued``.

    Raises:
        AssertionError: there is one.
    """
    __tracebackhide__ = True
    wanted = _Wanted.of(task, args, kwargs, queue, status)
    made = _all(connection)
    if found := wanted.among(made):
        raise AssertionError(_failure(f"expected no {wanted}", found, made))


@dataclass(frozen=True, slots=True)
class _Wanted:
    task: str | None
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    queue: str | None
    status: Status | None

    @classmethod
    def of(cls, task: Any, args: Any, kwargs: Any, queue: str | None, status: Status | str | None) -> _Wanted:
        name = getattr(task, "name", task)
        kept = None if args is None else list(args), None if kwargs is None else dict(kwargs)
        return cls(name, *kept, queue, None if status is None else Status(status))

    def among(self, made: list[Job]) -> list[Job]:
        return [job for job in made if self._fits(job)]

    def _fits(self, job: Job) -> bool:
        named = (self.task, job.task), (self.queue, job.queue), (self.status, job.status)
        return all(wanted in {None, found} for wanted, found in named) and _same(self.args, job.args) and _same(self.kwargs, job.kwargs)

    def __str__(self) -> str:
        parts = [f"{name}={_shown(value)}" for name, value in (("args", self.args), ("kwargs", self.kwargs)) if value is not None]
        parts += [f"{name}={value}" for name, value in (("queue", self.queue), ("status", self.status)) if value is not None]
        return " ".join([self.task or "job", *parts])


def _same(wanted: Any, found: Any) -> bool:
    """Whether a call with these arguments leaves these in its row."""
    return wanted is None or _plain(wanted) == _plain(found)


def _plain(value: Any) -> Any:
    """A value as JSON brings it back; as it is, when JSON has no form for it."""
    try:
        return json.loads(dumps(value, serializer="json")[2])
    except EncodeError:
        return value


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)


def _all(connection: Any) -> list[Job]:
    with _reading(connection) as driver:
        made = selection.find(driver, {"max_jobs": _MOST})
        encoded = testing.bodies(driver, [job.id for job in made])
    return sorted((_decoded(job, encoded.get(job.id)) for job in made), key=lambda job: job.created_at)


@contextmanager
def _reading(given: Any) -> Iterator[Connection]:
    target = target_of(given)
    if target is not None:
        yield target.connection()
        return
    settings = environment.load()
    with connect(settings.require_database(), name="bridge testing", timeout=settings.timeout) as own:
        yield own


def _decoded(job: Job, body: Body | None) -> Job:
    """The job with its arguments, also where Celery has serialised them as something else than JSON."""
    if body is None:
        return job
    headers = {"compression": body.compression} if body.compression else {}
    message = Message(
        body.payload, content_type=body.content_type, content_encoding=body.content_encoding, headers=headers, accept=_ANY_SERIALIZER
    )
    args, kwargs, _ = message.payload
    return replace(job, args=list(args), kwargs=dict(kwargs))


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _failure(expected: str, found: list[Job], made: list[Job]) -> str:
    lines = [f"{expected}, found {_times(len(found)) if found else 'none'}", *_listed(made)]
    eager = [repr(app.main) for app in _state._get_active_apps() if app.configured and app.conf.task_always_eager]
    if eager:
        lines.append(f"task_always_eager is on in application {', '.join(eager)}: its calls run at once and make no jobs")
    return "\n".join(lines)


def _listed(made: list[Job]) -> list[str]:
    if not made:
        return ["there is no job at all; those of an open transaction are seen with connection="]
    shown = [f"  {_line(job)}" for job in made[-_SHOWN:]]
    return [f"the jobs that there are ({len(made)}{', the last of them' if len(made) > _SHOWN else ''}):", *shown]


def _line(job: Job) -> str:
    error = f" error={job.error['type']}: {job.error['message']}" if job.error else ""
    return f"{job.task} args={_shown(job.args)} kwargs={_shown(job.kwargs)} queue={job.queue} status={job.status}{error}"
