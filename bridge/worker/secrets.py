"""Secrets by reference: what is stored says where a secret is, and whoever needs it looks there at that moment.

``env:shop`` is the variable ``BRIDGE_SECRET_SHOP`` of this process, ``vault:shop`` what ``bridge.secret('shop')`` answers. No other
variable can be named: whoever may write a reference could have any of them sent somewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridge.errors import DeliveryError, InvalidArgumentError, NotFoundError
from bridge.queries import secrets as vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.queries.connection import Connection

__all__ = ["in_environment", "resolved", "secret_of"]

_REFERENCE = re.compile(r"(env|vault):([a-z][a-z0-9_]{0,39})")


def secret_of(connection: Callable[[], Connection] | None, reference: str, *, prefix: str = "BRIDGE_SECRET_") -> str:
    """The secret that a reference names.

    Args:
        connection: gives one to the database; asked only for what is in the vault.
        reference: ``env:NAME`` or ``vault:NAME``.
        prefix: of the variable, before the name in upper case.

    Raises:
        InvalidArgumentError: it is no reference; it is not repeated, because it may be the secret.
        NotFoundError: nothing is there.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise InvalidArgumentError("a secret is named by no reference", "give env:NAME or vault:NAME, the name in lower case")
    place, name = found.groups()
    if place == "env":
        return in_environment(f"{prefix}{name.upper()}")
    if connection is None:
        raise NotFoundError(f"secret {name} is in the vault, and no database was given", "give a connection, or use env:NAME")
    return vault.read(connection(), name)


def in_environment(variable: str) -> str:
    """The value of a variable of this process, without space around it.

    Raises:
        NotFoundError: it is not set, or empty.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise NotFoundError(f"{variable} is not set in this worker's environment", "set it there")
    return value


def resolved(connection: Callable[[], Connection], headers: Mapping[str, Any]) -> dict[str, str]:
    """Headers of a request with secrets in place of their references, for the moment in which it is sent.

    Raises:
        DeliveryError: a secret is not where its reference says.
    """
    try:
        return {name: _value(connection, value) for name, value in headers.items()}
    except (InvalidArgumentError, NotFoundError) as error:
        raise DeliveryError(error.args[0], f"{error.hint}; the message is tried again") from error


def _value(connection: Callable[[], Connection], value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('before', '')}{secret_of(connection, str(value.get('secret')))}"
    return str(value)
