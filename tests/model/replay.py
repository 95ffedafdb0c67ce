"""Replays what was recorded of a running system: each step of each job must be one that the model allows, from where the last one led.

A step is what happens to a job's rows between two moments at which it is in exactly one place. It has the name of the innermost function
that the model knows of, and each name the steps of `rows` that it may take. Numbers stand for tokens, runs and shipments as in the model,
given in the order in which a job has them; a new one must be one that the job never had.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from model import rows as step
from model.rows import FINAL, PRODUCT, Row, Rules
from model.vocabulary import STEPS, Seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from model.trace import Record


@dataclass
class Story:
    """One job, as its records tell it."""

    max_losses: int
    row: Row | None = None
    jobs: dict[int, dict[str, Any]] = field(default_factory=dict)
    places: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    open: list[Record] = field(default_factory=list)  # since the last step
    told: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)  # steps, by name
    server: Any = None  # that the present flight began in

    def go(self, records: Iterable[Record]) -> str | None:
        """Take all of it; what is wrong, when something is."""
        for record in records:
            if record.place == "attempt" and record.after and record.after["outcome"] == "superseded":
                continue  # noted beside the job, whoever has its rows
            said = (self._commit() if self.open and self.open[-1].xid != record.xid else None) or self._take(record)
            if said:
                return said
        return self._commit() if self.open else None

    def _commit(self) -> str | None:
        """End a transaction that has left the job in no place: it must be gone."""
        if self.places or self.jobs:
            return f"transaction {self.open[-1].xid} leaves it in {sorted(self.places)}, with {len(self.jobs)} rows of job"
        return self._close()

    def _take(self, record: Record) -> str | None:
        self.told.append(str(record))
        self.open.append(record)
        if record.place == "attempt":
            return None
        held: dict[Any, dict[str, Any]] = self.jobs if record.place == "job" else self.places
        key: Any = record.seq if record.place == "job" else (record.place, record.seq)
        if held.pop(key, None) != record.before:
            return f"record {record.id} begins where no other ended"
        if record.after is not None:
            held[key] = record.after
        return self._close() if self._is_whole() else None

    def _close(self) -> str | None:
        """End the step: the job is in one place again."""
        fresh = len(self.numbers) + 1
        after, before = self._image(), self.row
        said = self._judge(before, after, fresh) if after != before else None
        if after and after.place == "claimed":
            self.server = self.open[-1].server
        self.row, self.open = after, []
        return said

    def _is_whole(self) -> bool:
        if len(self.places) != 1:
            return False
        ((place, seq),) = self.places
        return not self.jobs if place == "finished" else list(self.jobs) == [seq]

    def _number(self, value: Any) -> int:
        return 0 if value is None else self.numbers.setdefault(value, len(self.numbers) + 1)

    def _image(self) -> Row | None:
        if not self.places:
            return None
        (((place, seq), has),) = self.places.items()
        if place == "finished":
            return Row(has["status"], attempts=has["attempts"], losses=has["losses"])
        job = self.jobs[seq]
        counts = {"attempts": job["attempts"], "losses": job["losses"], "alone": bool(job["alone"])}
        if place != "inflight":
            return Row("ready" if place == "held" else place, self._number(has.get("token")), **counts)
        return Row(
            has["state"], self._number(has["token"]), has["copied"], self._number(has["shipment"]), self._number(has["run"]),
            step.NOBODY if has["worker"] is None else self._number(has["worker"]), None if has["missing_since"] is None else (),
            has["cancelled_at"] is not None, together=bool(has["together"]), **counts,
        )  # fmt: skip

    def _judge(self, before: Row | None, after: Row | None, fresh: int) -> str | None:
        # What led away from a place tells more than what made another: an ended job's id may be called again, by a row that comes first.
        told = sorted(self.open, key=lambda record: record.before is None)
        name = next((name for record in told for name in record.by if name in STEPS), "")
        if before is None and after is not None:
            made = after in (Row(), Row("scheduled"), Row("blocked")) or after.place in FINAL - {"succeeded"}
            return None if made else f"it begins as {after}"
        assert before is not None
        if after is None:  # history is dropped by the day, and thinned
            return None if before.place in FINAL else f"{before} is gone"
        if not name:
            return f"nobody that the model knows leads from {before} to {after}: {self.open[0].by}"
        seen = Seen(before, after, fresh, self._run(before), self._rules(), any(job["deadline"] for job in self._known_jobs()))
        if after in STEPS[name](seen):
            self.taken[name] += 1
            return None
        return f"{name} may not lead from {before} to {after}"

    def _run(self, before: Row) -> int:
        """The run that ended; one whose start was forgotten is known by history alone."""
        named = [
            record.after["run"] for record in self.open if record.place in {"finished", "attempt"} and record.after and record.after["run"]
        ]
        return self._number(named[-1]) if named else before.run

    def _known_jobs(self) -> Iterator[dict[str, Any]]:
        """Its content now, or as it was when it ended."""
        yield from self.jobs.values()
        yield from (record.before for record in self.open if record.place == "job" and record.before)

    def _rules(self) -> Rules:
        most = max((job["max_attempts"] for job in self._known_jobs()), default=1)
        forgot = self.open[-1].server != self.server
        return replace(PRODUCT, max_attempts=most, max_losses=self.max_losses, finish_knows_forgotten_starts=forgot)


def stories(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each job, by its id. A number names a job from the row of `job` on that has it, in that transaction and later."""
    ids: dict[int, list[tuple[int, str, str]]] = defaultdict(list)
    for record in records:
        if record.place == "job" and record.before is None and record.after:
            ids[record.seq].append((record.id, record.xid, record.after["id"]))
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        given = record.after or record.before or {}
        owners = [known for number, xid, known in ids[record.seq] if number <= record.id or xid == record.xid]
        found[given.get("id") or (owners[-1] if owners else f"number {record.seq}")].append(record)
    return dict(found)


@dataclass
class Replayed:
    """What came of a replay.

    Attributes:
        jobs: how many there were.
        taken: steps that the model allows, by name.
        refused: by job, its story, and at the end what the model does not allow.
    """

    jobs: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    refused: dict[str, list[str]] = field(default_factory=dict)


def replay(records: Sequence[Record], *, max_losses: int) -> Replayed:
    """Ask the model about each step of each job."""
    found = Replayed()
    for job, those in stories(records).items():
        story = Story(max_losses)
        said = story.go(those)
        found.jobs += 1
        found.taken += story.taken
        if said:
            found.refused[job] = [*story.told, said]
    return found
