"""What a kind of broker cannot do for jobs; said when a drainer starts, and by the doctor."""

from __future__ import annotations

__all__ = ["TESTED", "UNFIT", "shortcomings"]

_EMPTY_ONLY = "tell which messages wait in a queue: one that is gone is noticed once its queue is empty or deleted"
_NO_PRIORITY = "put an urgent message before others: priorities count in Postgres alone"
_NO_CONFIRMATION = "confirm that it keeps a message: one that was lost on its way is published again when its queue is empty"
_ONE_PROCESS = "be reached by another process: it is for tests within one"
_UNTESTED = "be vouched for: no test of the bridge runs with it"

TESTED: dict[str, tuple[str, ...]] = {
    "redis": (),
    "amqp": (_EMPTY_ONLY,),
    "filesystem": (_NO_PRIORITY, _NO_CONFIRMATION, _EMPTY_ONLY),
    "memory": (_ONE_PROCESS, _NO_PRIORITY, _NO_CONFIRMATION, _EMPTY_ONLY),
}
UNFIT = frozenset({_ONE_PROCESS, _UNTESTED})  # those that a person should do something about


def shortcomings(kind: str) -> tuple[str, ...]:
    """What brokers of this kind (kombu's driver type) cannot do, each as the end of a sentence."""
    return TESTED.get(kind, (_UNTESTED, _NO_PRIORITY, _NO_CONFIRMATION, _EMPTY_ONLY))
