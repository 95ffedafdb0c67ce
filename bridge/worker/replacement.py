"""Runs that replace themselves by several tasks: the last of these will have the run's id (Task.replace with a chain, group or chord).

Of one task that replaces a run nothing of this is true: its message is the run's next attempt, and is kept until the run is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery._state import get_current_task

from bridge.errors import WrongStateError
from bridge.results.ends import lead_to
from bridge.worker import outcome

if TYPE_CHECKING:
    from collections.abc import Collection

    from bridge.application import Membership

__all__ = ["note"]


def note(joined: Membership, signatures: Collection[Any]) -> None:
    """Before a message is sent: note that the run in hand is being replaced, when what follows the message ends in the run's own id.

    Args:
        joined: the application.
        signatures: what follows: later steps of a chain, the body of a chord.

    Raises:
        WrongStateError: the run has been completed: what comes with its id would take the place of its outcome.
    """
    if not signatures:
        return
    request: Any = getattr(get_current_task(), "request", None)
    run = outcome.run_of(request)
    if run is not None and not run.replaced and lead_to(signatures, request.id):
        if outcome.tells_no_more(run):
            raise WrongStateError(f"job {request.id} has been completed by this run", "replace it, or complete it, not both")
        outcome.about_to_be_replaced(joined, run)
