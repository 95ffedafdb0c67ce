"""The application of the ledger, with a short patience for a Redis that does not answer."""

from __future__ import annotations

from apps.ledger import app

__all__ = ["app"]

app.conf.broker_transport_options = {"health_check_interval": 1}  # seconds
