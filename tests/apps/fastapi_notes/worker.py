"""The Celery application and its tasks, in one module, as such services have them."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task
from celery.utils.log import get_task_logger

from fastapi_notes.database import Effect, Note, SessionLocal

logger = get_task_logger(__name__)

celery_app = Celery(__name__, broker=os.environ["NOTES_BROKER_URL"], backend=os.environ["NOTES_RESULTS_URL"])
celery_app.conf.update(
    task_serializer="json", result_serializer="json", accept_content=["json"], task_track_started=True, result_extended=True,
    task_default_queue="notes", task_default_priority=5, broker_connection_retry_on_startup=True,
)  # fmt: skip

if os.environ.get("NOTES_JOINS"):
    import bridge

    bridge.install(celery_app)


class DatabaseTask(Task):
    """Opens a session when a run needs one, and closes it after the run."""

    abstract = True
    _session = None

    @property
    def session(self) -> Any:
        if self._session is None:
            self._session = SessionLocal()
        return self._session

    def after_return(self, *_: Any) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def note(self, subject: str, what: str) -> None:
        self.session.add(Effect(subject=subject, what=what))
        self.session.commit()


@celery_app.task(name="notes.read", base=DatabaseTask, bind=True)
def read(self: DatabaseTask, note_id: int) -> dict[str, int]:
    """Count a note's words. Between its two commits the next job is called, as one does."""
    note = self.session.get(Note, note_id)
    note.status = "reading"
    self.session.commit()
    counted: dict[str, int] = {}
    for word in note.text.split():
        counted[word] = counted.get(word, 0) + 1
    announce.delay(note_id, word_count=len(counted))
    note.words, note.status = counted, "read"
    self.session.commit()
    return counted


@celery_app.task(name="notes.announce", base=DatabaseTask, bind=True, ignore_result=True, priority=0)
def announce(self: DatabaseTask, note_id: int, *, word_count: int) -> None:
    self.note(f"note {note_id}", f"{word_count} different words")


@celery_app.task(name="notes.slowly", base=DatabaseTask, bind=True)
def slowly(self: DatabaseTask, name: str, steps: int) -> str:
    """Say how far it has come, and go on when an effect says so."""
    self.update_state(state="PROGRESS", meta={"current": 1, "total": steps})
    while not self.session.query(Effect).filter_by(subject=name, what="go").count():
        self.session.rollback()
        time.sleep(0.02)
    return f"{steps} steps"


@celery_app.task(name="notes.split")
def split(text: str) -> list[str]:
    return text.split()


@celery_app.task(name="notes.length")
def length(word: str) -> int:
    return len(word)


@celery_app.task(name="notes.longest", base=DatabaseTask, bind=True)
def longest(self: DatabaseTask, lengths: list[int], label: str) -> int:
    self.note(label, f"longest of {sorted(lengths)}")
    return max(lengths)


@celery_app.task(name="notes.each", bind=True)
def each(self: Task, words: list[str], label: str) -> Any:
    """Replace itself by a chord over what came before."""
    from celery import chord

    raise self.replace(chord((length.s(word) for word in words), longest.s(label)))


@celery_app.task(name="notes.flaky", base=DatabaseTask, bind=True, max_retries=2)
def flaky(self: DatabaseTask, label: str, failures: int) -> str:
    self.note(label, f"run {self.request.retries}")
    try:
        if self.request.retries < failures:
            raise ConnectionError(f"failure {self.request.retries}")
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=0) from error
    return f"worked after {failures}"


@celery_app.task(name="notes.told", base=DatabaseTask, bind=True)
def told(self: DatabaseTask, result: Any, label: str) -> None:
    self.note(label, f"told {result}")
