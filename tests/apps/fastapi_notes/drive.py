"""Talk to the service through FastAPI's test client."""

from __future__ import annotations

from typing import Any

from conversation import Conversation
from fastapi.testclient import TestClient

from fastapi_notes.database import Base, engine
from fastapi_notes.main import app

Base.metadata.create_all(engine)
client = TestClient(app)


def send(method: str, path: str, data: Any) -> tuple[int, Any]:
    said = client.request(method, path, json=data)
    return said.status_code, said.json()


talk = Conversation(send)

made = talk.ask("POST", "/notes", {"text": "the cat and the hat"})
talk.ended(f"/tasks/{made['task']}")
talk.until("/notes/1", lambda said: said["announced"] == 1)
for task in talk.ask("POST", "/notes/again"):
    talk.ended(f"/tasks/{task}")
talk.until("/notes/1", lambda said: said["announced"] == 2)
talk.ask("GET", "/notes/99")
longest = talk.ask("POST", "/longest", {"text": "one three seventeen"})
talk.ended(f"/tasks/{longest['task']}")
lengths = talk.ask("POST", "/lengths", {"text": "one three seventeen"})
talk.ended(f"/lengths/{lengths['group']}")
slow = talk.ask("POST", "/slowly/snail")
talk.until(f"/tasks/{slow['task']}", lambda said: said["state"] == "PROGRESS")
talk.ask("POST", "/slowly/snail/go")
talk.ended(f"/tasks/{slow['task']}")
for label, failures in (("mends", 2), ("breaks", 9)):
    tried = talk.ask("POST", "/flaky", {"label": label, "failures": failures})
    talk.ended(f"/tasks/{tried['task']}")
for name in ("split", "nobody-knows"):
    called = talk.ask("POST", f"/by-name/{name}")
    talk.ended(f"/tasks/{called['task']}")
talk.report()
