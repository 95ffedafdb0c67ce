"""Delivering a notification through Apprise: mail, Slack and some hundred others, by the task ``bridge.deliver_notification``.

The job names a notifier; the addresses, which hold the secrets, are in the worker's environment or the vault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.application import membership
from bridge.errors import DeliveryError, NotFoundError, PermanentError
from bridge.worker.secrets import in_environment, secret_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.queries.connection import Connection

__all__ = ["NAME", "deliver", "register", "target_variable"]

NAME = "bridge.deliver_notification"  # the SQL that makes these jobs knows it
_KINDS = {"succeeded": "success", "failed": "failure", "retrying": "warning"}
_SEVERITIES = {"critical": "failure", "warning": "warning"}


def register(app: Any) -> None:
    """Give an application the task that delivers notifications."""

    def deliver_notification(self: Any, target: str, payload: Mapping[str, Any], callback: str = "") -> None:
        del callback  # for who reads the row
        deliver(target, payload, membership(self.app).connections.get)  # type: ignore[union-attr]

    app.task(name=NAME, bind=True, shared=False)(deliver_notification)


def target_variable(name: str) -> str:
    """The variable that holds the addresses of the notifier of this name."""
    return f"BRIDGE_NOTIFIER_{name.removeprefix('env:').upper()}"


def deliver(target: str, payload: Mapping[str, Any], connection: Callable[[], Connection] | None = None) -> None:
    """Send a notification to all addresses of a notifier.

    Args:
        target: its name, or ``vault:NAME``.
        payload: the message.
        connection: gives one to the database, whose vault may have the addresses.

    Raises:
        PermanentError: an address is none that Apprise knows.
        DeliveryError: one of them did not take it, or this worker lacks the addresses or Apprise.
    """
    variable = target if target.startswith("vault:") else target_variable(target)
    try:
        addresses = (secret_of(connection, target) if variable == target else in_environment(variable)).split()
    except NotFoundError as error:
        raise DeliveryError(error.args[0], f"{error.hint}; the message is tried again") from error
    try:
        import apprise  # noqa: PLC0415 - an extra
    except ImportError:
        raise DeliveryError("this worker has no apprise", "install celery-bridge[notify] there; the message is tried again") from None
    notifier = apprise.Apprise()
    for place, address in enumerate(addresses, 1):
        if not notifier.add(address):
            raise PermanentError(f"address {place} of {variable} is none that Apprise knows: correct it, then redrive this job")
    title, body, kind = _alert(payload) if payload["type"].startswith("alert.") else _job(payload["data"])
    if not notifier.notify(body=body, title=title, notify_type=kind):
        raise DeliveryError(f"an address of {variable} did not take the message", "all of them are tried again; the worker's log says more")


def _job(job: Mapping[str, Any]) -> tuple[str, str, str]:
    """Title, body and kind of what became of a job."""
    error = job.get("error")
    lines = [
        f"{job['task']} {job['status']}, queue {job['queue']}, attempt {job['attempts']}",
        f"{error['type']}: {error['message']}" if error else "",
        f"job {job['task_id']}",
    ]
    return f"{job['task']} {job['status']}", "\n".join(line for line in lines if line), _KINDS.get(job["status"], "info")


def _alert(payload: Mapping[str, Any]) -> tuple[str, str, str]:
    """Title, body and kind of an alert."""
    alert, event = payload["data"], payload["type"].removeprefix("alert.")
    kind = "success" if event == "resolved" else _SEVERITIES.get(alert["severity"], "info")
    return (
        f"{alert['severity']}: {alert['rule']} {event}",
        f"{alert['message']}\nalert {alert['id']}, open since {alert['opened_at']}",
        kind,
    )
