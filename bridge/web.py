"""The paths that our processes answer: ``/metrics``, ``/health`` and ``/stats``. Pages for people will stand here, too."""

from __future__ import annotations

import os
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from bridge.endpoint import App, Exposition, Reading, json_response
from bridge.endpoint.exposition import new_registry
from bridge.errors import SettingError
from bridge.meter import PrometheusMeter
from bridge.queries import metrics, monitoring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.drainer import Drainer
    from bridge.endpoint import Request, Response
    from bridge.endpoint.app import Route
    from bridge.settings import Settings

__all__ = ["TOKEN", "drainer_app", "token_of", "web_app"]

TOKEN = "BRIDGE_WEB_TOKEN"  # noqa: S105 - the name of a variable
_ALIVE = "/health/live"
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def token_of(environment: Mapping[str, str], name: str | None) -> str | None:
    """The token that callers must bring: what a variable holds, so that it stands in no command line and no file of ours.

    Args:
        environment: of the process.
        name: the variable; None takes BRIDGE_WEB_TOKEN, where it is set.

    Raises:
        SettingError: the variable that was named is not set, or it is empty.
    """
    token = environment.get(name or TOKEN)
    if token is None and name is None:
        return None
    if not token:
        raise SettingError(f"{name or TOKEN} is {'not set' if token is None else 'empty'}", "let it hold the token that callers must bring")
    return token


def require_token(host: str, token: str | None) -> None:
    """Refuse to let the network read what a process knows without a token.

    Raises:
        SettingError: it would listen on other addresses than the loopback's.
    """
    if token is None and host not in _LOOPBACK:
        raise SettingError(f"{host} is no address of the loopback, and there is no token", f"set {TOKEN}, or listen on 127.0.0.1")


def web_app(settings: Settings, token: str | None) -> tuple[App, Reading]:
    """The application of ``bridge web``, and the connection that it reads by."""
    reading = Reading(settings, name="bridge web")

    def health(_: Request) -> Response:
        return _judged(reading.ask(monitoring.health))

    def stats(_: Request) -> Response:
        return json_response(_by_status(reading.ask(metrics.read)))

    routes: dict[str, Route] = {"/metrics": Exposition(new_registry(), reading), "/health": health, _ALIVE: _alive, "/stats": stats}
    return App(routes, token=token, public=[_ALIVE]), reading


def _alive(_: Request) -> Response:
    """Whoever answers lives."""
    return json_response({"status": "ok"})


def _judged(components: list[dict[str, Any]]) -> Response:
    """What is healthy, how many of each status there are, and 503 as soon as a component is failing, as ``bridge health`` exits with 1."""
    counts = Counter(row["status"] for row in components)
    status = "failing" if counts["failing"] else "degraded" if counts["degraded"] else "healthy"
    code = HTTPStatus.SERVICE_UNAVAILABLE if counts["failing"] else HTTPStatus.OK
    return json_response({"status": status, "summary": counts, "components": components}, code)


def _verdict(facts: dict[str, Any], *, well: bool) -> Response:
    """200 when all is well, else 503, with what is known."""
    return json_response({"status": "ok" if well else "failing", **facts}, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)


def _by_status(rows: list[metrics.Metric]) -> dict[str, Any]:
    """How many live jobs there are by status, how many have ended by outcome, in all and of each queue."""
    found: dict[str, Any] = {"jobs": {}, "ended": {}, "queues": {}}
    for row in rows:
        if row.name not in {"bridge_jobs", "bridge_jobs_ended_total"}:
            continue
        kind, word = ("jobs", row.labels["status"]) if row.name == "bridge_jobs" else ("ended", row.labels["outcome"])
        queue = found["queues"].setdefault(row.labels["queue"], {"jobs": {}, "ended": {}})
        for place in (found, queue):
            place[kind][word] = place[kind].get(word, 0) + int(row.value)
    return found


def drainer_app(drainer: Drainer, settings: Settings, token: str | None) -> tuple[App, Reading]:
    """What a drainer answers: its own figures beside those of Postgres, whether it is ready and whether it lives.

    ``/health`` is 503 while it cannot publish. ``/health/live`` is 503 only when its loop stands still, which a restart may mend: an outage
    of Postgres or the broker is waited out.
    """
    registry = new_registry()
    drainer.meter = PrometheusMeter(registry)
    _gauges(registry, drainer)
    reading = Reading(settings, name="bridge drain metrics")

    def health(_: Request) -> Response:
        facts = drainer.vitals.facts()
        return _verdict(facts, well=bool(facts["postgres"] and facts["broker"] and drainer.vitals.turns(settings.timeout)))

    def alive(_: Request) -> Response:
        turns = drainer.vitals.turns(settings.timeout)
        return _verdict({"loop": turns}, well=turns)

    routes: dict[str, Route] = {"/metrics": Exposition(registry, reading), "/health": health, _ALIVE: alive}
    return App(routes, token=token, public=[_ALIVE]), reading


def _gauges(registry: Any, drainer: Drainer) -> None:
    from prometheus_client import Gauge  # noqa: PLC0415 - an extra

    connected = Gauge("bridge_drainer_connected", "Whether the drainer is connected", ["to"], registry=registry)
    connected.labels("postgres").set_function(lambda: float(drainer.vitals.postgres))
    connected.labels("broker").set_function(lambda: float(drainer.vitals.broker))


def environment_token(name: str | None = None) -> str | None:
    """`token_of` this process' environment."""
    return token_of(os.environ, name)
