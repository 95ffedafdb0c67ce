"""Talk to the shop through Django's test client."""

from __future__ import annotations

import json
from typing import Any

import django

django.setup()

from conversation import Conversation  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.test import Client  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
client = Client()


def send(method: str, path: str, data: Any) -> tuple[int, Any]:
    said = client.generic(method, path, data=json.dumps(data), content_type="application/json")
    return said.status_code, said.json()


talk = Conversation(send)
ITEMS = [["tea", 3], ["cup", 8], ["spoon", 2]]

talk.ask("POST", "/orders/", {"email": "ada@example.org", "items": ITEMS})
talk.ask("POST", "/orders/", {"email": "nobody@example.org", "items": []})
talk.until("/orders/1/", lambda said: said["status"] == "confirmed")
priced = talk.ask("POST", "/orders/1/total/")
talk.ended(f"/tasks/{priced['task']}/")
talk.until("/orders/1/", lambda said: said["total"] is not None)
shipped = talk.ask("POST", "/orders/1/ship/")
talk.ended(f"/tasks/{shipped['task']}/")
talk.ended(f"/tasks/{shipped['first']}/")
talk.ask("GET", "/orders/1/")
for amount in (0, 5):
    paid = talk.ask("POST", "/orders/1/pay/", {"amount": amount})
    talk.ended(f"/tasks/{paid['task']}/")
talk.ask("GET", "/tasks/00000000-0000-0000-0000-000000000000/")
talk.report()
