"""Secrets for tasks: a job, or its schedule, names one, and the task asks for it when it needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.client import connection_of
from bridge.errors import InvalidArgumentError
from bridge.worker.secrets import secret_of

__all__ = ["secret"]


def secret(reference: str | Mapping[str, Any], *, connection: Any = None) -> str:
    """The secret that a reference names; it is looked up now, and kept nowhere.

    Args:
        reference: ``"env:shop"``, the variable ``BRIDGE_SECRET_SHOP`` of this process; ``"vault:shop"``, in the database's vault; or a
            mapping ``{"secret": "env:shop"}``, as a schedule's arguments hold it.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        InvalidArgumentError: it is no reference.
        NotFoundError: there is no such variable, or nothing of that name in the vault.
    """
    named = reference.get("secret") if isinstance(reference, Mapping) else reference
    if not isinstance(named, str):
        raise InvalidArgumentError("a secret is named by no reference", 'give "env:NAME", "vault:NAME" or {"secret": "env:NAME"}')
    return secret_of(lambda: connection_of(connection), named)
