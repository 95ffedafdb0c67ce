"""What Prometheus reads: the figures of Postgres beside those of the process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bridge.endpoint.app import Response
from bridge.errors import BridgeError, SettingError
from bridge.queries import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

    from bridge.endpoint.app import Request
    from bridge.endpoint.reading import Reading

__all__ = ["Exposition", "new_registry"]

log = logging.getLogger("bridge.endpoint")


def new_registry() -> CollectorRegistry:
    """A registry of the process's own, with what prometheus_client knows of any process.

    Raises:
        SettingError: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, disable_created_metrics  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingError("prometheus_client is not installed", "pip install 'celery-bridge[metrics]'") from error
    disable_created_metrics()  # type: ignore[no-untyped-call] # when a counter began is nobody's question here, and a series each
    registry = CollectorRegistry()
    PlatformCollector(registry=registry)
    ProcessCollector(registry=registry)
    return registry


class _Database:
    """A collector of what ``bridge.metrics()`` says; an outage leaves the rest of the answer as it is."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Family]:
        """Called for each answer."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - an extra

        try:
            found = self._reading.ask(lambda connection: _families(metrics.catalog(connection), metrics.read(connection)))
        except BridgeError as error:
            log.warning("no figures of postgres error=%s", error)
            found = []
        yield GaugeMetricFamily("bridge_database_up", "Whether Postgres has answered", value=float(bool(found)))
        yield from found


def _families(catalog: dict[str, tuple[str, str]], rows: list[metrics.Metric]) -> list[Family]:
    """The series of each name together, as the format wants them; a name without any is there with what it means."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - an extra

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    families: dict[str, Family] = {}
    for row in rows:
        if row.name not in families:
            families[row.name] = kinds[row.type](row.name, row.help, labels=list(row.labels))
        families[row.name].add_metric(list(row.labels.values()), row.value)  # type: ignore[attr-defined]
    return [*families.values(), *(kinds[kind](name, words, labels=[]) for name, (kind, words) in catalog.items() if name not in families)]


class Exposition:
    """Answers ``/metrics``, in the text format or in that of OpenMetrics, as the scraper asks; ``?database=off`` leaves Postgres out."""

    def __init__(self, registry: CollectorRegistry, reading: Reading) -> None:
        self._registry = registry
        self._database = type(registry)()
        self._database.register(_Database(reading))

    def __call__(self, request: Request) -> Response:
        """One scrape."""
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - an extra

        encode, content_type = choose_encoder(request.accept)
        # Each ends with "# EOF" in OpenMetrics: the registries are asked together.
        registries = [self._registry] if request.query.get("database") == "off" else [self._registry, self._database]
        return Response(encode(_Together(registries)), content_type)


class _Together:
    """Several registries as one."""

    def __init__(self, registries: list[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Family]:
        """All of their families."""
        for registry in self._registries:
            yield from registry.collect()
