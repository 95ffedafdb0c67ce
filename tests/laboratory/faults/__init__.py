"""Faults: one class each, in one table by name. Every module of this folder is imported, so a new one needs no entry elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from laboratory.world import Needs

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

    from laboratory.world import World

__all__ = ["BECAME", "FAULTS", "MISSED", "OBEYED", "ORDERED", "STRUCK", "Cost", "Fault", "MissedError", "fault"]

STRUCK = "struck"
ORDERED = "ordered"  # a process is to do it to itself, and is not yet known to have
OBEYED = "obeyed"  # it has
MISSED = "missed"  # there was nothing to hit, or nobody obeyed in time
BECAME = (STRUCK, ORDERED, OBEYED, MISSED)


class MissedError(OSError):
    """There was nothing to hit; an outage to who catches those, because mostly another fault has taken it away."""


@dataclass(frozen=True)
class Cost:
    """What a strike may cost: no more than the promise says, because this is what is tested.

    Attributes:
        again: workers whose runs under way may be lost and run again.
        loses_tail: what is committed from the strike on may be missing (asynchronous failover).
        most: so many runs may be lost, at most: what can have been running there at one moment; None: no bound.
        pids: the processes of pools that were hit, and whose runs these are; None where that is not known at the strike.
    """

    again: Collection[str] = frozenset()
    loses_tail: bool = False
    most: int | None = None
    pids: Collection[int] | None = None


class Fault(ABC):
    """One strike. Its docstring's first line is shown by --list.

    Attributes:
        name: unique, in kebab-case.
        needs: what the world must have.
        hold: seconds between strike and mend, at least and at most.
        group: of those of one group a plan that names none draws one as often as any other fault; empty: of none.
        chance: draw everything from it, so that a seed repeats it.
        became: whether it met anything, a word of `BECAME`; the last word is said when it is mended.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    hold: ClassVar[tuple[float, float]] = (0.0, 2.0)
    group: ClassVar[str] = ""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.became = STRUCK

    @classmethod
    def lacks(cls) -> str | None:
        """What this machine has not, and it needs; with the remedy."""
        return None

    @abstractmethod
    def strike(self, world: World) -> Cost:
        """Do it, and return soon with what it may cost.

        Raises:
            MissedError: there was nothing to hit.
        """

    def waits(self) -> bool:
        """Whether it is an order that nobody has obeyed yet."""
        return False

    def mend(self, world: World) -> None:  # noqa: B027 - most strikes leave nothing to be undone
        """Undo it; also called after a strike that failed."""


FAULTS: dict[str, type[Fault]] = {}
Kind = TypeVar("Kind", bound=type[Fault])


def fault(kind: Kind) -> Kind:
    """Put a class into the table."""
    if kind.name in FAULTS:
        raise ValueError(f"two faults are called {kind.name!r}")
    FAULTS[kind.name] = kind
    return kind


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
