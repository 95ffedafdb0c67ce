"""What can go wrong, by name: one exception for each SQLSTATE of class JB, and what the Python side adds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "BridgeError",
    "CompletingError",
    "ConflictError",
    "DeadlineExceeded",
    "DeliveryError",
    "InvalidArgumentError",
    "JobFailedError",
    "LockedError",
    "NotAllowedError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermanentError",
    "PublishError",
    "RefusedError",
    "SchemaError",
    "ServerError",
    "SettingError",
    "UncommittedError",
    "UnsendableError",
    "WaitTimeoutError",
    "WrongStateError",
    "from_sqlstate",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one job of a bulk call.

    Attributes:
        job: its number in the call, from 0.
        argument: the name of the argument.
        message: what is wrong, with the value.
        hint: what to do about it.
        code: SQLSTATE of class JB.
    """

    job: int
    argument: str
    message: str
    hint: str
    code: str


class BridgeError(Exception):
    """Anything the bridge refuses or fails to do.

    Attributes:
        hint: what to do about it; may be empty.
        faults: of a bulk call, every bad job, 20 at most; empty otherwise.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        message = str(super().__str__())
        return f"{message}: {self.hint}" if self.hint else message


class InvalidArgumentError(BridgeError, ValueError):
    """An argument that can never work; nothing was written (JB001)."""


class NotFoundError(BridgeError, LookupError):
    """No such job, queue or setting (JB002)."""


class ConflictError(BridgeError):
    """A live job has that unique key already (JB003)."""


class PayloadTooLargeError(InvalidArgumentError):
    """Arguments over the limit ``max_payload`` (JB004)."""


class SchemaError(BridgeError):
    """The schema is missing, or older or newer than this process (JB005)."""


class WrongStateError(BridgeError):
    """The job is not in a state that allows this (JB006)."""


class CompletingError(WrongStateError):
    """A transaction of the job's own task is completing it, and has stayed open for long (JB007); repeat it when that has ended."""


class NotAllowedError(BridgeError, PermissionError):
    """The role may not do this to jobs: a rule for its tasks, or its tenant, forbids it (JB008)."""


class UncommittedError(WrongStateError):
    """A job is waited for that its own transaction has not committed: it could never end."""


class SettingError(BridgeError, ValueError):
    """A ``BRIDGE_*`` variable is unknown, missing or out of bounds."""


class ServerError(BridgeError):
    """A server or its program is missing, did not start or cannot be reached."""


class LockedError(BridgeError):
    """Somebody's transaction holds what an upgrade has to change; nothing has been changed."""


class PublishError(BridgeError):
    """The broker refused a shipment or timed out; its jobs are published again later.

    Attributes:
        confirmed: numbers (``seq``) of the jobs whose message the broker has all the same. Of the others some may have arrived.
        blamed: the error is about what was sent: the message of one of them cannot be sent, and nobody says of which.
    """

    def __init__(self, message: str, hint: str = "", *, confirmed: Collection[int] = (), blamed: bool = False) -> None:
        super().__init__(message, hint)
        self.confirmed = frozenset(confirmed)
        self.blamed = blamed


class RefusedError(PublishError):
    """The broker is well, but does not take messages of this queue: it is full, or they lead nowhere."""


class UnsendableError(BridgeError):
    """No message can be made of a job, or the broker takes none: the error of a job that has failed by that."""


class DeliveryError(BridgeError):
    """A webhook or a notification did not arrive; its job tries again.

    Attributes:
        retry_after: seconds until then, where the receiver has named a time; None leaves it to the job's backoff.
    """

    retry_after: float | None = None


class WaitTimeoutError(BridgeError, TimeoutError):
    """A job had not ended when the wait was over; it goes on."""


class JobFailedError(BridgeError):
    """A job that was waited for did not succeed."""


class PermanentError(Exception):
    """Raise this (or a subclass) in a task to say that no further attempt can help: the job fails at once."""


class DeadlineExceeded(Exception):  # noqa: N818 - as Celery calls its time limits
    """A job's deadline has passed: the error of a job that this has ended, raised by ``AsyncResult.get``."""


_BY_SQLSTATE: dict[str, type[BridgeError]] = {
    "JB001": InvalidArgumentError,
    "JB002": NotFoundError,
    "JB003": ConflictError,
    "JB004": PayloadTooLargeError,
    "JB005": SchemaError,
    "JB006": WrongStateError,
    "JB007": CompletingError,
    "JB008": NotAllowedError,
}


def from_sqlstate(sqlstate: str | None, message: str, hint: str | None, detail: str | None = None) -> BridgeError | None:
    """The exception for one of our SQLSTATEs; None for any other error of the database."""
    kind = _BY_SQLSTATE.get(sqlstate or "")
    if kind is None:
        return None
    error = kind(message, hint or "")
    if detail and detail.startswith('[{"'):
        error.faults = tuple(
            Fault(said["job"], said["argument"], said["message"], said["hint"], said["code"]) for said in json.loads(detail)
        )
    return error
