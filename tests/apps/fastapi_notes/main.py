"""The service."""

from __future__ import annotations

from typing import Annotated, Any

from celery import chain, group
from celery.result import AsyncResult, GroupResult
from conversation import shown
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy.orm import Session

from fastapi_notes.database import Effect, Note, get_session
from fastapi_notes.worker import celery_app, each, flaky, length, read, slowly, split, told

app = FastAPI()
OpenSession = Annotated[Session, Depends(get_session)]


class NewNote(BaseModel):
    text: str


class Flaky(BaseModel):
    label: str
    failures: int


@app.post("/notes", status_code=201)
def create(wanted: NewNote, session: OpenSession) -> dict[str, Any]:
    """Commit, refresh, call, return: the refresh has begun another transaction, which the end of the request rolls back."""
    note = Note(text=wanted.text)
    session.add(note)
    session.commit()
    session.refresh(note)
    return {"note": note.id, "task": read.delay(note.id).id}


@app.post("/notes/again", status_code=202)
def read_again(session: OpenSession) -> list[str]:
    """Call for each row of a query, with nothing to commit."""
    return [read.delay(note.id).id for note in session.query(Note).order_by(Note.id)]


@app.get("/notes/{note_id}")
def show(note_id: int, session: OpenSession) -> dict[str, Any]:
    note = session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "no such note")
    effects = session.query(Effect).filter_by(subject=f"note {note_id}").count()
    return {"status": note.status, "words": note.words, "announced": effects}


@app.post("/longest", status_code=202)
async def find_longest(wanted: NewNote) -> dict[str, str]:
    """From an async endpoint: a chain whose middle replaces itself by a chord, and a callback."""
    found = chain(split.s(wanted.text), each.s("longest"), told.s("callback")).apply_async()
    return {"task": found.id}


@app.post("/lengths", status_code=202)
async def lengths(wanted: NewNote) -> dict[str, Any]:
    """A group, saved to be found again by its id."""
    found = group(length.s(word) for word in wanted.text.split()).apply_async()
    found.save()
    return {"group": found.id, "parts": len(found.results)}


@app.get("/lengths/{group_id}")
def show_lengths(group_id: str) -> dict[str, Any]:
    found = GroupResult.restore(group_id, app=celery_app)
    done = found.ready()
    return {"state": "SUCCESS" if done else "PENDING", "done": found.completed_count(), "values": found.join() if done else None}


@app.post("/slowly/{name}", status_code=202)
def go_slowly(name: str) -> dict[str, str]:
    return {"task": slowly.apply_async((name,), {"steps": 3}, queue="slow").id}


@app.post("/slowly/{name}/go")
def go_on(name: str, session: OpenSession) -> dict[str, str]:
    session.add(Effect(subject=name, what="go"))
    session.commit()
    return {"said": "go"}


@app.post("/flaky", status_code=202)
def try_flaky(wanted: Flaky) -> dict[str, str]:
    return {"task": flaky.apply_async((wanted.label, wanted.failures), link=told.s(f"{wanted.label} linked")).id}


@app.post("/by-name/{name}", status_code=202)
def by_name(name: str) -> dict[str, str]:
    """Called by name alone: the worker knows the task, or it does not."""
    return {"task": celery_app.send_task(f"notes.{name}", args=["a b a"]).id}


@app.get("/tasks/{task_id}")
def status(task_id: str) -> dict[str, Any]:
    found = AsyncResult(task_id, app=celery_app)
    said = shown(found)
    return {**said, "value": found.info} if said["state"] == "PROGRESS" else said
