"""Pausing, resuming and draining queues from Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bridge import settings as environment
from bridge.asked import seconds
from bridge.client import connection_of
from bridge.errors import InvalidArgumentError, WaitTimeoutError
from bridge.queries import queues
from bridge.queries.connection import connect
from bridge.queries.queues import Load, What

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bridge.queries.connection import Connection

__all__ = ["drain", "named", "pause", "pauses", "resume", "set_bundle", "set_window", "watch"]

_LOOK_EVERY = 0.25  # seconds between two looks at what is in flight


def pause(
    queue: str | None = None,
    *,
    task: str | None = None,
    everything: bool = False,
    hard: bool = False,
    reason: str | None = None,
    connection: Any = None,
) -> int:
    """Publish nothing more of a queue, a task or everything until it is resumed.

    When its transaction has committed, nothing more is claimed; until then drainers pass by what is being paused.

    Args:
        queue: pause this queue.
        task: pause this task, whatever queue its jobs are in.
        everything: pause all there is.
        hard: what is published does not start either: it is due in Postgres again. Without it, what is published goes on.
        reason: shown in ``bridge.pauses``.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        How many published jobs were taken back.

    Raises:
        InvalidArgumentError: not exactly one of queue, task and everything is given.
    """
    return queues.pause(connection_of(connection), What(queue, task, everything), hard=hard, reason=reason)


def pauses(*, connection: Any = None) -> list[dict[str, Any]]:
    """All pauses, those of open circuit breakers included, as the view ``bridge.pauses`` has them."""
    return queues.pauses(connection_of(connection))


def resume(queue: str | None = None, *, task: str | None = None, everything: bool = False, connection: Any = None) -> bool:
    """End a pause. Each is ended by itself: a queue that was paused before everything was stays paused.

    Args:
        queue: resume this queue.
        task: resume this task.
        everything: end the pause of everything.
        connection: whose transaction to join, as for ``enqueue``.

    Returns:
        False when it was not paused.

    Raises:
        InvalidArgumentError: not exactly one of queue, task and everything is given.
    """
    return queues.resume(connection_of(connection), What(queue, task, everything))


def set_window(queue: str, jobs: int | None = None, *, connection: Any = None) -> None:
    """Give a queue a window of its own.

    Args:
        queue: its name.
        jobs: how many of its jobs may be published and not started; 0: no bound; None: the setting ``window``, as for every other queue.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        InvalidArgumentError: the queue is no name, or jobs is negative.
    """
    queues.set_window(connection_of(connection), queue, jobs)


def drain(
    *names: str,
    everything: bool = False,
    hard: bool = False,
    reason: str | None = "drained",
    timeout: float | None = None,
    progress: Callable[[list[Load]], Any] | None = None,
) -> None:
    """Empty queues for a deployment: pause them, and wait until nothing of them is published or runs.

    They stay paused, also when this raises or is interrupted; ``resume`` them afterwards. It works on a connection of its own and joins
    no transaction.

    Args:
        names: the queues.
        everything: all queues, by a pause of everything.
        hard: take back what is published, so that only what runs is waited for.
        reason: shown in ``bridge.pauses``.
        timeout: seconds; None waits for ever.
        progress: called with what is left of each queue, at every look.

    Raises:
        InvalidArgumentError: neither queues nor everything are given, or both.
        WaitTimeoutError: something was still published or running when the time was over.
    """
    limit = seconds("timeout", timeout)
    wanted = named(names, everything=everything)
    settings = environment.load()
    with connect(settings.require_database(), name="bridge queues drain", timeout=settings.timeout) as connection:
        for what in wanted:
            queues.pause(connection, what, hard=hard, reason=reason)
        left: list[Load] = []
        for left in watch(connection, None if everything else names, limit):
            if progress is not None:
                progress(left)
    late = [f"{load.queue} ({load.published + load.publishing} published, {load.running} running)" for load in left if load.total]
    if late:
        raise WaitTimeoutError(f"not drained after {timeout} s: {', '.join(late)}", "they stay paused; wait again, or resume them")


def named(names: Sequence[str], *, everything: bool) -> list[What]:
    """What is to be paused or resumed: these queues, or everything.

    Raises:
        InvalidArgumentError: neither or both are given.
    """
    if not all(isinstance(name, str) for name in names):
        raise InvalidArgumentError(f"queues are {', '.join(type(name).__name__ for name in names)}", "give their names, one by one")
    if bool(names) == bool(everything):
        raise InvalidArgumentError(f"queues are {list(names)}, everything is {everything}", "name queues, or say everything; not both")
    return [What(everything=True)] if everything else [What(queue=name) for name in dict.fromkeys(names)]


def watch(connection: Connection, names: Sequence[str] | None, timeout: float | None = None) -> Iterator[list[Load]]:
    """Look at queues until they are drained or the time is over; each look is yielded, the last one too.

    Args:
        connection: one that is not inside a transaction.
        names: the queues; None for all that have something in flight.
        timeout: seconds; None waits for ever.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = queues.loads(connection, names)
        yield left
        pause = _LOOK_EVERY if deadline is None else min(_LOOK_EVERY, deadline - time.monotonic())
        if pause <= 0 or not any(load.total for load in left):
            return
        time.sleep(pause)


def set_bundle(queue: str, jobs: int | None = None, *, connection: Any = None) -> None:
    """Say how many jobs of a queue one message may have, for tasks that do not say it themselves (the option ``bridge_bundle``).

    Args:
        queue: its name.
        jobs: 1 to 1000; None: one, as ever.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        InvalidArgumentError: the queue is no name, or jobs is out of bounds.
    """
    queues.set_bundle(connection_of(connection), queue, jobs)
