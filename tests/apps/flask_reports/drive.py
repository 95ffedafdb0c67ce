"""Talk to the application through Flask's test client."""

from __future__ import annotations

from typing import Any

from conversation import Conversation

from flask_reports import create_app

client = create_app().test_client()


def send(method: str, path: str, data: Any) -> tuple[int, Any]:
    said = client.open(path, method=method, json=data)
    return said.status_code, said.get_json()


talk = Conversation(send)

summed = talk.ask("POST", "/add", {"a": 2, "b": 3})
talk.ended(f"/tasks/{summed['task']}")
talk.ask("POST", "/reports", {"title": "bees"})
talk.until("/reports/1", lambda said: said["body"] is not None)
talk.ask("POST", "/invoice")
for countdown in (0, 1):
    seen = talk.ask("POST", "/context", {"countdown": countdown})
    talk.ended(f"/tasks/{seen['task']}")
for how in ("return", "reject", "retry-with-more", "unserializable"):
    asked = talk.ask("POST", f"/stubborn/{how}")
    talk.ended(f"/tasks/{asked['task']}")
stopped = talk.ask("POST", "/endless")
talk.ended(f"/tasks/{stopped['task']}")
expired = talk.ask("POST", "/late")
talk.ended(f"/tasks/{expired['task']}")
own = talk.ask("POST", "/own-id/invoice-7")
talk.ended(f"/tasks/{own['task']}")
talk.ask("DELETE", f"/tasks/{summed['task']}")
talk.ask("GET", f"/tasks/{summed['task']}")
talk.report()
