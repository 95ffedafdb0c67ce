"""Tasks that last until they are let go, in a worker whose broker has no patience."""

from __future__ import annotations

import json
import os
from typing import Any

from apps.ledger import app, hold_until, noted

app.conf.update(broker_transport_options={"visibility_timeout": 1}, worker_prefetch_multiplier=4)
app.conf.update(json.loads(os.environ.get("BRIDGE_TEST_CONF", "{}")))


@app.task(name="lasting.early", bind=True)
def early(self: Any, until: str) -> int:
    """Acknowledged before it begins."""
    return hold_until(self, until)


@app.task(name="lasting.late", bind=True, acks_late=True)
def late(self: Any, until: str) -> int:
    """Acknowledged when it has ended."""
    return hold_until(self, until)


@app.task(name="lasting.rare", bind=True, rate_limit="1/m")
def rare(self: Any) -> int:
    """One a minute: a worker holds the others."""
    with noted(self.request):
        return 1
