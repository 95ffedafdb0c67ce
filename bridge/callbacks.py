"""Who is told of what becomes of jobs: webhooks, notifications and channels, by rules for a task or a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.asked import mapping, require_json_of, several
from bridge.client import connection_of
from bridge.queries import callbacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["remove_callback", "set_channel", "set_notifier", "set_webhook", "try_callback"]

_ENDS = ("succeeded", "failed", "cancelled", "expired")


def set_webhook(
    name: str,
    url: str,
    *,
    connection: Any = None,
    task: str | None = None,
    queue: str | None = None,
    events: Sequence[str] = _ENDS,
    secret: str = "default",  # noqa: S107 - its name
    result: bool = False,
    delivery_queue: str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> str:
    """Post a signed message to an address whenever something of a task or a queue happens.

    Args:
        name: of the callback; the same name changes it.
        url: http or https; no user and password in it.
        connection: whose transaction to join, as for ``enqueue``.
        task: only of this task, or of a pattern such as ``mail.*``; None: of all.
        queue: only of this queue.
        events: of "succeeded", "failed" (no attempt follows: a dead letter), "cancelled", "expired", "retrying" (another follows).
        secret: name of the secret that signs: "default" is ``BRIDGE_WEBHOOK_SECRET`` in the workers' environment, "billing" is
            ``BRIDGE_WEBHOOK_SECRET_BILLING``, "vault:billing" is in the vault.
        result: whether the message holds the job's result.
        delivery_queue: where the jobs go that deliver it; None: the setting ``callback_queue``, else the queue of the job.
        headers: further headers of the request; a secret by reference: ``{"Authorization": {"secret": "env:shop", "before": "Bearer "}}``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work, or a header is a secret in clear.
    """
    named = {"name": name, "url": url, "task": task, "queue": queue, "events": several("events", events), "secret": secret}
    further = {"result": result, "delivery_queue": delivery_queue, "headers": None if headers is None else mapping("headers", headers)}
    require_json_of("the callback", further)
    return callbacks.set_callback(connection_of(connection), "webhook", {**named, **further})


def set_notifier(
    name: str,
    target: str,
    *,
    connection: Any = None,
    task: str | None = None,
    queue: str | None = None,
    events: Sequence[str] = ("failed",),
    delivery_queue: str | None = None,
) -> str:
    """Send a notification (mail, Slack and what else Apprise knows) whenever something of a task or a queue happens.

    Args:
        name: of the callback; the same name changes it.
        target: name of a notifier: "ops" means the Apprise addresses in ``BRIDGE_NOTIFIER_OPS`` of the workers' environment.
        connection: whose transaction to join, as for ``enqueue``.
        task: as for ``set_webhook``.
        queue: as for ``set_webhook``.
        events: as for ``set_webhook``.
        delivery_queue: as for ``set_webhook``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    named = {
        "name": name,
        "target": target,
        "task": task,
        "queue": queue,
        "events": several("events", events),
        "delivery_queue": delivery_queue,
    }
    return callbacks.set_callback(connection_of(connection), "notifier", named)


def set_channel(
    name: str, channel: str, *, connection: Any = None, task: str | None = None, queue: str | None = None, events: Sequence[str] = _ENDS
) -> str:
    """NOTIFY a channel whenever something of a task or a queue happens.

    Args:
        name: of the callback; the same name changes it.
        channel: what listeners LISTEN to; a plain name.
        connection: whose transaction to join, as for ``enqueue``.
        task: as for ``set_webhook``.
        queue: as for ``set_webhook``.
        events: as for ``set_webhook``.

    Returns:
        "created", "changed" or "unchanged".

    Raises:
        InvalidArgumentError: an argument can never work.
    """
    named = {"name": name, "channel": channel, "task": task, "queue": queue, "events": several("events", events)}
    return callbacks.set_callback(connection_of(connection), "channel", named)


def remove_callback(name: str, *, connection: Any = None) -> None:
    """End a callback. What it has made already is delivered.

    Raises:
        NotFoundError: there is none of that name.
    """
    callbacks.remove(connection_of(connection), name)


def try_callback(name: str, *, connection: Any = None) -> None:
    """Tell a callback of something that did not happen, to see whether it arrives.

    Raises:
        NotFoundError: there is none of that name.
    """
    callbacks.try_callback(connection_of(connection), name)
