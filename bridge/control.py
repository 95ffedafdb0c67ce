"""Remote control reaches rows: what an application revokes or purges is cancelled in Postgres, whether a worker hears of it or not."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError

from bridge.application import membership
from bridge.errors import ServerError
from bridge.job import job_id
from bridge.queries import revokes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.application import Membership

__all__ = ["DONE", "REVOKES", "ConnectionMaker", "RowControl", "revoke_rows"]

REVOKES = ("revoke", "terminate", "revoke_by_stamped_headers")  # the commands that cancel
DONE = "bridge_done"  # argument of a command whose sender has cancelled the rows: a retry since then must not be cancelled as well


class RowControl:
    """Mixed into the application's Control class: every command passes through ``broadcast``, those of ``celery control`` too."""

    app: Any

    def broadcast(self, command: str, arguments: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> Any:
        """Cancel the rows that a revoke means, then tell the workers as ever: while Celery waits for a broker, they are cancelled.

        Raises:
            OperationalError: kombu's, when Postgres or the broker cannot be reached; repeating does no harm.
        """
        joined = membership(self.app)
        if joined is not None and command in REVOKES:
            arguments = dict(arguments or {})
            try:
                revoke_rows(joined, command, arguments)
            except ServerError as error:
                raise OperationalError(str(error)) from error
            arguments[DONE] = True
        return super().broadcast(command, arguments, *args, **options)  # type: ignore[misc]

    def purge(self, connection: Any = None) -> int:
        """Celery's purge, through a connection that purges rows; one that is given may come from kombu's pool, whose class is its own.

        Raises:
            ServerError: Postgres is away; nothing was purged of the queue whose turn it was, or of those after it.
        """
        del connection
        with self.app.connection_for_write() as ours:
            return int(super().purge(connection=ours))  # type: ignore[misc]

    discard_all = purge


def revoke_rows(joined: Membership, command: str, arguments: Mapping[str, Any]) -> None:
    """Do to rows what one of ``REVOKES`` does to the workers' tasks: what waits never runs, what runs is stopped if it says so.

    Raises:
        InvalidArgumentError: the signal is none.
        ServerError: Postgres is away.
    """
    connection = joined.connections.get()
    terminate = command == "terminate" or bool(arguments.get("terminate"))
    signal = _signal(arguments.get("signal"))
    if command == "revoke_by_stamped_headers":
        revokes.revoke_stamped(connection, _stamps(arguments["headers"]), terminate=terminate, signal=signal)
    else:
        ids = [job_id(str(task_id)) for task_id in maybe_list(arguments.get("task_id")) or ()]
        revokes.revoke(connection, ids, terminate=terminate, signal=signal)


def _signal(given: Any) -> str:
    """A signal as Celery takes it (name, number, enum, None) as text."""
    if isinstance(given, int):
        return str(int(given))
    return str(given).upper() if given else "TERM"


def _stamps(headers: Any) -> dict[str, list[Any]]:
    """Stamps by header; the command line gives a list of ``header=stamp``."""
    if isinstance(headers, list | tuple):
        headers = dict(text.split("=", 1) for text in headers)
    return {header: list(maybe_list(stamps) or ()) for header, stamps in headers.items()}


class PurgingConnection:
    """Mixed into the application's connections: purging a queue cancels the jobs that wait for it.

    ``app.control.purge()``, ``celery purge`` and ``celery worker --purge`` have this in common: each purges the queue through its
    connection's default channel.
    """

    joined: Membership

    @property
    def default_channel(self) -> Any:
        """Kombu's default channel; it purges rows as well."""
        channel = super().default_channel  # type: ignore[misc]
        if "queue_purge" not in channel.__dict__:
            channel.queue_purge = _Purge(self.joined, channel.queue_purge)
        return channel


class _Purge:
    """Stands in for a channel's ``queue_purge``."""

    def __init__(self, joined: Membership, theirs: Any) -> None:
        self._joined = joined
        self._theirs = theirs

    def __call__(self, queue: str, *args: Any, **options: Any) -> int:
        """Cancel the rows, then empty the queue: the other way round a drainer could fill it again.

        Returns:
            How many jobs and messages are gone, a job and its message counted once.
        """
        rows = revokes.purge(self._joined.connections.get(), queue)
        messages = self._theirs(queue, *args, **options) or 0
        return rows.cancelled + max(0, messages - rows.published)


class ConnectionMaker:
    """Mixed into the application's AMQP class, which names the class of its connections."""

    app: Any

    @cached_property
    def Connection(self) -> Any:  # noqa: N802 - Celery's name
        """Kombu's connection with our purge."""
        theirs = super().Connection  # type: ignore[misc]
        joined = membership(self.app)
        return theirs if joined is None else type("BridgeConnection", (PurgingConnection, theirs), {"joined": joined})
