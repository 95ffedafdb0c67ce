"""A drainer's own figures: kept where somebody asks for them, else not counted at all."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

__all__ = ["Meter", "PrometheusMeter"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_JOBS = (1, 3, 10, 30, 100, 300, 1000, 3000)


class Meter:
    """Notes nothing: for a drainer without an endpoint."""

    def claimed(self, seconds: float, jobs: int) -> None:
        """A claim has taken so long and given so many jobs; those that give none are not noted."""

    def shipped(self, seconds: float, jobs: int) -> None:
        """A shipment has been published in so long."""

    def failed(self, reason: str) -> None:
        """A shipment was not published, or not wholly: ``refused`` by the broker, or an ``outage``."""

    def recovered(self, jobs: int) -> None:
        """So many jobs were published again whose messages were gone."""

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """A tick is at work."""
        yield


class PrometheusMeter(Meter):
    """Keeps them for Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram  # noqa: PLC0415 - an extra

        def histogram(name: str, words: str, buckets: Any) -> Histogram:
            return Histogram(f"bridge_drainer_{name}", words, buckets=buckets, registry=registry)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"bridge_drainer_{name}", words, labels, registry=registry)

        self._claim = histogram("claim_seconds", "Seconds of claims that gave jobs", _SECONDS)
        self._publish = histogram("publish_seconds", "Seconds from the first message of a shipment to the broker's confirmation", _SECONDS)
        self._tick = histogram("tick_seconds", "Seconds of ticks of this drainer", _SECONDS)
        self._shipment = histogram("shipment_jobs", "Jobs of a shipment", _JOBS)
        self._published = counter("published_jobs_total", "Jobs that this drainer has published")
        self._failed = counter("publish_errors_total", "Shipments that were not published, or not wholly", "reason")
        self._recovered = counter("recovered_jobs_total", "Jobs published again because their messages were gone")
        for reason in ("refused", "outage"):
            self._failed.labels(reason)

    def claimed(self, seconds: float, jobs: int) -> None:
        """See `Meter`."""
        if jobs:
            self._claim.observe(seconds)

    def shipped(self, seconds: float, jobs: int) -> None:
        """See `Meter`."""
        self._publish.observe(seconds)
        self._shipment.observe(jobs)
        self._published.inc(jobs)

    def failed(self, reason: str) -> None:
        """See `Meter`."""
        self._failed.labels(reason).inc()

    def recovered(self, jobs: int) -> None:
        """See `Meter`."""
        self._recovered.inc(jobs)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """See `Meter`."""
        began = time.monotonic()
        yield
        self._tick.observe(time.monotonic() - began)
