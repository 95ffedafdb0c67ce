"""The servers that a benchmark uses: our own in a folder that goes away, or those that the user names."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from bridge import schema
from bridge.errors import SettingError
from bridge.local.broker import RedisServer, free_port
from bridge.local.postgres import PostgresServer
from bridge.settings import libpq_url, without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Servers", "open_servers"]


@dataclass(frozen=True, slots=True)
class Servers:
    """Where Postgres and Redis are.

    Attributes:
        dsn: the database.
        broker_url: the broker, for both sides.
        results_url: where plain Celery keeps results: the broker's next database.
        folder: for logs; goes away with the benchmark.
        own: we started them, as they come, on loopback ports.
    """

    dsn: str
    broker_url: str
    results_url: str
    folder: Path
    own: bool


@contextmanager
def open_servers(database_url: str | None, broker_url: str | None) -> Iterator[Servers]:
    """Start servers, or take those given, with our schema in the database; what was started is stopped at the end.

    Raises:
        ServerError: there is no Postgres or Redis to start, or a given one cannot be reached.
        SettingError: a URL is not one that the benchmark can use.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        dsn = libpq_url(database_url) if database_url else _start_postgres(folder, stack)
        broker = broker_url or _start_redis(folder, stack)
        schema.install(dsn)
        yield Servers(dsn, broker, _next_database(broker), folder, own=not (database_url or broker_url))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o711)  # the user whom root drops to must walk through
    try:
        yield folder
    finally:
        # What was killed may be writing its last while the folder is emptied.
        Retrying(retry=retry_if_exception_type(OSError), stop=stop_after_delay(5.0), wait=wait_fixed(0.1), reraise=True)(
            shutil.rmtree, folder
        )


def _start_postgres(folder: Path, stack: ExitStack) -> str:
    # By TCP, as most applications reach theirs: a socket would be cheaper for the side that talks to Postgres.
    server = PostgresServer(folder / "postgres", port=free_port())
    stack.callback(server.stop)
    return server.start().dsn


def _start_redis(folder: Path, stack: ExitStack) -> str:
    server = RedisServer(folder / "redis", port=free_port())
    stack.callback(server.stop)
    return server.start().url


def _next_database(url: str) -> str:
    """The same Redis, one database further.

    Raises:
        SettingError: it is no Redis reached by TCP.
    """
    parts = urlsplit(url)
    number = parts.path.strip("/") or "0"
    if parts.scheme not in {"redis", "rediss"} or not re.fullmatch(r"\d+", number):
        raise SettingError(f"broker url {without_password(url)} is no Redis", "the benchmark takes redis://host:port/number")
    return urlunsplit(parts._replace(path=f"/{int(number) + 1}"))
