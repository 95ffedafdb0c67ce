"""Chords of an application that keeps results in Postgres alone: no task polls, and the body is enqueued once.

A part of a chord adds a row in the transaction that ends it. After that its worker looks whether all parts are there, in a new
transaction: of parts that end at once, the last one to commit sees the others. Who sees all of them takes the chord and enqueues its body
in one transaction. Where nobody got so far (the worker died just then, the last part was cancelled in SQL), the sweep enqueues the task
``bridge.join_chord``, which does the same.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from celery import maybe_signature, states
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.result import GroupResult, result_from_tuple
from celery.utils.functional import _regen
from kombu.exceptions import OperationalError
from kombu.utils.json import loads as json_loads

from bridge.job import job_id
from bridge.queries import chords, results
from bridge.queries.connection import OUTAGE
from bridge.queries.results import Scope, Value
from bridge.results.ends import ends
from bridge.results.text import columns, json_text, value_of
from bridge.results.writer import RowWriter
from bridge.transaction.current import using
from bridge.worker import outcome

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from bridge.queries.chords import Taken
    from bridge.queries.connection import Connection
    from bridge.queries.results import Stored

__all__ = ["JOIN", "ChordJoiner", "register"]

log = logging.getLogger("bridge.worker")

JOIN = "bridge.join_chord"  # the sweep knows this name
_OUTAGE = (*OUTAGE, OperationalError)


def register(app: Any) -> None:
    """Give an application the task that joins a chord where no part's worker has done it."""

    def join_chord(group_id: str) -> None:
        app.backend.join_chord(group_id)

    app.task(name=JOIN, shared=False, ignore_result=True)(join_chord)


class _Ended(threading.local):
    """Chords that parts of this thread have just ended in, with the body that each part carries."""

    def __init__(self) -> None:
        self.chords: list[tuple[str, Any]] = []


class _Begun(threading.local):
    """Chords whose header this thread is enqueuing: whoever begins a chord says how many parts it has, nobody else."""

    def __init__(self) -> None:
        self.chords: set[str] = set()


class ChordJoiner(RowWriter):
    """The part of the backend that knows chords."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ended_parts = _Ended()
        self._begun = _Begun()

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        """Celery's hook before the parts of a chord are enqueued."""
        self.ensure_chords_allowed()
        self._note_replacement(body)
        identity, members = header_result_args
        # A header that is a generator is left alone: it may be long.
        grouped = not isinstance(members, _regen) and any(isinstance(member, GroupResult) for member in members)
        form = json_text([member.as_tuple() for member in members]) if grouped else None
        kept = columns(dict(body), body.options.get("serializer") or self.app.conf.task_serializer)
        text = f'{{"plain": {kept.result or "null"}, "kept": {kept.outcome or "null"}}}'
        begun = chords.Chord(identity, text, form, self._queue_of(body), self._chord_keeping())
        self._ask(lambda connection: chords.begin(connection, begun))
        self._begun.chords.add(identity)

    def _queue_of(self, body: Any) -> str:
        """Where the body will go: a worker that can join it consumes there."""
        last = next(iter(ends(body)), body)
        queue = self.app.amqp.router.route(dict(last.options), last.task, last.args, last.kwargs)["queue"]
        return str(getattr(queue, "name", queue))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Celery's hook before the last part is enqueued.

        Celery before 5.7 also calls it for a group that ends a part, with the id of the chord: it would count these members alone.
        """
        if group_id in self._begun.chords:
            self._begun.chords.discard(group_id)
            self._ask(lambda connection: chords.set_size(connection, group_id, chord_size))

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Celery's hook: a part adds another."""
        self._ask(lambda connection: chords.grow(connection, chord_id))

    def _chord_keeping(self) -> timedelta | None:
        """How long the application waits for a chord's parts where it says so. Its results may be kept for less than a part waits."""
        expires = self.app.conf.get("result_chord_expires")
        keeping: timedelta | None = None if expires is None else self._keeping(expires)
        return keeping

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS) -> None:
        """Celery's hook: a task returned. Its chord is looked at when Postgres has its end."""
        super().mark_as_done(task_id, result, request=request, store_result=store_result, state=state)
        if self._ended_parts.chords:
            self._bridge.channels.get().settle()
            self._look()

    def _unstored(self, result: Any, request: Any) -> Value:
        """What the row keeps of a task that ignores its result: a chord's body needs it all the same."""
        return self._columns(result, request, ignored=True) if getattr(request, "chord", None) else Value()

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Celery's hook: a task failed. What follows from it for steps that will never run is written in the same transaction."""
        options: dict[str, Any] = {"store_result": store_result, "call_errbacks": call_errbacks, "state": state}
        if getattr(request, "chain", None) and outcome.run_of(request) is not None:
            self._fail_together(task_id, exc, traceback, request, options)
        else:
            super().mark_as_failure(task_id, exc, traceback=traceback, request=request, **options)
        self._look()

    def _fail_together(self, task_id: str, exc: Any, traceback: str | None, request: Any, options: dict[str, Any]) -> None:
        run = request.bridge_run

        def write() -> None:
            run.settled = False  # should the first try have come through after all, the second finds the run ended and writes nothing
            with self._bridge.connections.get().transaction():
                super(ChordJoiner, self).mark_as_failure(task_id, exc, traceback, request, **options)

        outcome.patiently(write)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Celery's hook: a part has ended. A job's row counts itself, so this counts those that have none, or never ran."""
        identity, part = request.group, request.id
        if not identity or not part:
            return
        if not outcome.is_of_a_row(request):
            if self._known(part) is None:
                self._store(part, state, self._stored_value(result, state, None, request, ignored=True))
            self._ask(lambda connection: chords.end_part(connection, identity, job_id(part), request.group_index))
        elif getattr(request, "bridge_run", None) is None:
            return  # the main process has no time to join: the sweep is asked
        self._ended_parts.chords.append((identity, request.chord))

    def _look(self) -> None:
        """Join the chords that are complete now; one that an outage keeps from it is left to the sweep."""
        while self._ended_parts.chords:
            identity, body = self._ended_parts.chords.pop()
            try:
                if chords.is_complete(self._bridge.connections.get(), identity):
                    self.join_chord(identity, body)
            except _OUTAGE as error:
                log.warning("chord is left to the sweep chord=%s error=%s", identity, error)

    def join_chord(self, group_id: str, body: Any = None) -> None:
        """Enqueue the body of a chord whose parts have all ended, or fail it, once.

        Args:
            group_id: of the header.
            body: the signature, from a part's message; the chord has its own copy.

        Raises:
            ServerError: Postgres went away; the chord is still there.
        """
        connection = self._bridge.connections.get()
        with using(None), connection.transaction():
            taken = chords.take(connection, group_id)
            if taken is not None:
                self._join(connection, taken, maybe_signature(body or _body_of(taken, self.accept), app=self.app))
        self._look()  # the body's failure may have ended a part of another chord

    def _join(self, connection: Connection, taken: Taken, callback: Any) -> None:
        try:
            values = self._values(connection, taken)
            with connection.transaction():
                callback.delay(values)
        except _OUTAGE:
            raise
        except ChordError as error:
            log.info("chord fails body=%s error=%s", callback.id, error)
            self._fail_body(callback, error)
        except Exception as error:
            log.exception("chord's body cannot be enqueued body=%s", callback.id)
            self._fail_body(callback, ChordError(f"Callback error: {error!r}"))

    def _values(self, connection: Connection, taken: Taken) -> list[Any]:
        """What the parts returned, in the form of the header.

        Raises:
            ChordError: in Celery's words, of the first part that did not succeed.
        """
        known = {stored.id: stored for stored in results.many(connection, taken.parts, Scope())}
        values = {part: self._part(part, known.get(part)) for part in taken.parts}
        if taken.members is None:
            return list(values.values())
        return [_shaped(result_from_tuple(member, self.app), values) for member in json.loads(taken.members)]

    def _part(self, part: UUID, stored: Stored | None) -> Any:
        if stored is None:
            raise ChordError(f"Dependency {part} has no result any more")
        if self._reader.state_now(stored) == states.SUCCESS:
            return self._reader.value(stored)
        raised = self._reader.exception(stored)
        error = ChordError(f"Dependency {stored.task_id} raised {raised!r}")
        error.__cause__ = raised
        raise error

    def _fail_body(self, callback: Any, error: ChordError) -> None:
        """Celery's way to fail a body, and what it leaves out: a body that is itself a part of another chord has ended there."""
        try:
            raise error
        except ChordError:
            self.chord_error_from_stack(callback, error)
        for end in ends(callback):
            if end.options.get("chord"):
                part = {"id": end.options.get("task_id"), "group": end.options.get("group_id")}
                part |= {"group_index": end.options.get("group_index"), "chord": end.options["chord"]}
                self.on_chord_part_return(Context(part), states.FAILURE, error)


def _body_of(taken: Taken, accept: Any) -> Any:
    """The chord's own copy of its body."""
    text = json_loads(taken.body)
    return value_of(None, text["kept"], accept) if text["kept"] else text["plain"]


def _shaped(member: Any, values: dict[UUID, Any]) -> Any:
    if isinstance(member, GroupResult):
        return [_shaped(one, values) for one in member.results]
    return values.get(job_id(member.id))
