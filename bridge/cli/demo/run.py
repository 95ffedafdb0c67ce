"""The demo's course: stack up, schema and pipeline in, uploads inserted, jobs watched, a contact sheet at the end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridge import client, schema
from bridge.cli.demo.files import SQL
from bridge.errors import BridgeError
from bridge.job import Job, Status
from bridge.queries import uploads
from bridge.queries.connection import connect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from uuid import UUID

    from bridge.cli.demo.screen import Screen
    from bridge.local.stack import Stack
    from bridge.queries.connection import Connection

__all__ = ["SHEET_TASK", "Demo", "Outcome"]

SHEET_TASK = "media.contact_sheet"
_LOOK = 0.1  # seconds between two looks at the jobs, or ten times what a look takes: watching must not cost the jobs their processor
_STALLED = 600.0  # seconds without any change after which the stack is taken for stuck; above the longest time one file may take


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a demo.

    Attributes:
        jobs: every job, in the order of the files; the contact sheet's comes last.
        seconds: from the insert of the uploads to the end of the last job.
    """

    jobs: tuple[Job, ...]
    seconds: float

    @property
    def sheet(self) -> Job | None:
        """The job that drew the contact sheet; None when there was nothing to draw."""
        last = self.jobs[-1]
        return last if last.task == SHEET_TASK else None

    def count(self, status: Status) -> int:
        """How many jobs ended so."""
        return sum(job.status is status for job in self.jobs)


@dataclass(frozen=True, slots=True)
class Demo:
    """One run of the demo.

    Attributes:
        place: the folder with tasks/.
        pictures: folder for what the jobs draw; made when it is missing.
        screen: told of every step and change.
    """

    place: Path
    pictures: Path
    screen: Screen

    def start(self, stack: Stack) -> None:
        """Start the stack and bring the pipeline into its database.

        Raises:
            BridgeError: a part of it does not start.
        """
        self.pictures.mkdir(parents=True, exist_ok=True)
        # The worker inherits both. A root of the user's own would shut out the samples.
        os.environ["MEDIA_OUTPUT"] = str(self.pictures)
        os.environ.pop("MEDIA_ROOT", None)
        stack.start(lambda step: self.screen.step("installing the schema" if step == "schema" else f"starting {step}"))
        schema.install_pipeline(stack.endpoints.dsn, self.place / SQL)
        if stack.endpoints.flower_url is not None:
            self.screen.say(f"Flower shows the workers at {stack.endpoints.flower_url} while this runs")

    def run(self, stack: Stack, files: Sequence[Path]) -> Outcome:
        """Send the files through the pipeline, then draw the contact sheet; return when the last job has ended.

        Raises:
            ChildDiedError: a process of the stack ended.
            BridgeError: nothing moves any more.
        """
        with connect(stack.endpoints.dsn, name="bridge demo") as connection:
            started = time.monotonic()
            identities = uploads.add_uploads(connection, files, f"demo {datetime.now(UTC).isoformat()}")
            self.screen.expect(len(files))
            jobs = self._watch(stack, connection, identities)
            cards = [job.result["card"] for job in jobs if job.status is Status.SUCCEEDED]
            if cards:
                sheet = {"cards": cards, "target": str(self.pictures / "contact-sheet.png")}
                drawn = client.enqueue(SHEET_TASK, kwargs=sheet, connection=connection, max_attempts=1)
                jobs += self._watch(stack, connection, [drawn])
            return Outcome(tuple(jobs), time.monotonic() - started)

    def _watch(self, stack: Stack, connection: Connection, identities: Sequence[UUID]) -> list[Job]:
        seen: dict[UUID, Job] = {}
        left, moved = set(identities), time.monotonic()
        while left:
            stack.check()
            began = time.monotonic()
            changed = [job for job in uploads.states(connection, list(left)) if _differs(job, seen.get(job.id))]
            for job in changed:
                seen[job.id] = job
                self.screen.change(job)
            left -= {job.id for job in changed if job.status.final}
            now = time.monotonic()
            moved = now if changed else moved
            if now - moved > _STALLED:
                raise BridgeError(f"{len(left)} jobs have not moved for {_STALLED:g} s", f"see the logs in {stack.home / 'logs'}")
            if left:
                time.sleep(max(_LOOK, 10 * (now - began)))
        return [seen[identity] for identity in identities]


def _differs(job: Job, before: Job | None) -> bool:
    return before is None or (job.status, job.progress, job.attempts) != (before.status, before.progress, before.attempts)
