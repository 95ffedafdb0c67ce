"""Which task calls become rows. A mapping as option, which asks something of the job, chooses a row.

A call's own option wins over its task's, that over the patterns of ``install``, those over the environment's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OPTION", "Patterns", "choice_of"]

OPTION = "bridge"  # of a task (@app.task(bridge=False)), of a call (apply_async(bridge=False)), of a route


@dataclass(frozen=True, slots=True)
class Patterns:
    """Names of tasks, with ``*`` and ``?`` as in file names.

    Attributes:
        only: take these; empty takes all.
        exclude: of those, leave these to the broker.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def take(self, task: str) -> bool:
        """Whether calls of this task become rows."""
        if self.only and not _matches(task, self.only):
            return False
        return not _matches(task, self.exclude)

    def or_else(self, other: Patterns) -> Patterns:
        """These; where one of the two lists is empty, the other's."""
        return Patterns(self.only or other.only, self.exclude or other.exclude)

    @classmethod
    def given(cls, only: Iterable[str] | None, exclude: Iterable[str] | None) -> Patterns:
        """Those that a program names.

        Raises:
            InvalidArgumentError: one text instead of several, or something that is no text.
        """
        return cls(_texts("only", only), _texts("exclude", exclude))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _texts(name: str, patterns: Iterable[str] | None) -> tuple[str, ...]:
    found = (patterns,) if isinstance(patterns, str | bytes) else tuple(patterns or ())
    if isinstance(patterns, str | bytes) or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise InvalidArgumentError(f"{name} is {patterns!r}", 'give a list of patterns, for example ["mail.*"]')
    return found


def choice_of(value: object, whose: str) -> bool | None:
    """What an option says: a row (True, or a mapping of what is asked of it), straight to the broker (False), or nothing (None).

    Raises:
        InvalidArgumentError: it says something else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return True
    raise InvalidArgumentError(
        f"option {OPTION} of {whose} is {value!r}",
        'give True for a row, False for straight to the broker, or a mapping of what is asked of the row, {"unique_key": "report-{0}"}',
    )
