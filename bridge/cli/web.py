"""web: metrics and health over HTTP."""

from __future__ import annotations

import signal
import threading

import click

from bridge import settings

__all__ = ["web_command"]


@click.command("web")
@click.option("--listen", metavar="[HOST:]PORT", help="Where to listen (BRIDGE_WEB); a port alone is one of the loopback.  [default: 8642]")
@click.option("--token-env", metavar="NAME", help="The variable that holds the token callers must bring.  [default: BRIDGE_WEB_TOKEN]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log (BRIDGE_LOG_LEVEL).")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How to log (BRIDGE_LOG_FORMAT).")
def web_command(*, listen: str | None, token_env: str | None, log_level: str | None, log_format: str | None) -> None:
    """Answer /metrics, /health and /stats over HTTP until SIGTERM.

    \b
    Examples:
      bridge web
      BRIDGE_WEB_TOKEN=… bridge web --listen 0.0.0.0:8642
      curl -H "Authorization: Bearer $BRIDGE_WEB_TOKEN" http://127.0.0.1:8642/health
    """
    from bridge import records
    from bridge.endpoint import Server
    from bridge.web import environment_token, require_token, web_app

    given = {"web": listen, "log_level": log_level, "log_format": log_format}
    chosen = settings.load().changed(**{key: value for key, value in given.items() if value is not None})
    records.set_up(chosen)
    host, port = settings.address(chosen.web)
    token = environment_token(token_env)
    require_token(host, token)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    app, reading = web_app(chosen, token)
    with Server(app, host, port, setting="--listen or BRIDGE_WEB") as server:
        click.echo(f"listening on {server.url}")
        stop.wait()
    reading.close()
