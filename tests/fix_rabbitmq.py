"""A real RabbitMQ: one node a session, because it takes seconds to start, and a virtual host a test.

A test asks for `vhost`; one that stops or kills the node asks for `rabbitmq` as well and starts it again. The node is ours alone: its own
name, ports, cookie and folder, and a port mapper (epmd) that ends with it. It writes nowhere else.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import urllib.request
from base64 import b64encode
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
from amqp.exceptions import NotFound
from fix_servers import missing, wait_until
from kombu import Connection

from bridge.local.broker import free_port
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_tls import Certificates

HOW_TO_GET_IT = "apt-get install rabbitmq-server"
USER = "bridge"
PROGRAMS = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"  # the commands on PATH insist on a user and a folder of the system


def find_programs() -> Path | None:
    """The folder of RabbitMQ's own scripts."""
    found = sorted(Path("/").glob(PROGRAMS.lstrip("/")))
    return found[-1] if found else None


@dataclass
class RabbitServer:
    """A node on ports of 127.0.0.1 that survive a restart."""

    folder: Path
    programs: Path
    certificates: Certificates
    tls_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    api_port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700)
        self.node = f"bridge-{secrets.token_hex(3)}@localhost"
        self._epmd_port, self._node_port = free_port(), free_port()
        self._write("cookie/.erlang.cookie", secrets.token_hex(10)).chmod(0o400)
        self._write("enabled_plugins", "[rabbitmq_management].")
        settings = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}", "management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.api_port}",
            f"default_user = {USER}", f"default_pass = {self.password}", "log.console = true", "log.file = false",
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}", f"ssl_options.cacertfile = {self.certificates.authority}",
            f"ssl_options.certfile = {self.certificates.certificate}", f"ssl_options.keyfile = {self.certificates.key}",
            "ssl_options.verify = verify_none",
        )  # fmt: skip
        self._write("rabbitmq.conf", "\n".join(settings))
        self._epmd = self._process("epmd", "epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self.process = self._process("rabbitmq", str(self.programs / "rabbitmq-server"))

    @property
    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"], "HOME": f"{folder}/cookie", "LANG": "C.UTF-8", "ERL_CRASH_DUMP": f"{folder}/erl_crash.dump",
            "ERL_EPMD_PORT": str(self._epmd_port), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node, "RABBITMQ_DIST_PORT": str(self._node_port), "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data", "RABBITMQ_LOG_BASE": f"{folder}/log", "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_PLUGINS_EXPAND_DIR": f"{folder}/plugins", "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/config", "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false +S 2:2",
        }  # fmt: skip

    def start(self) -> RabbitServer:
        """Start it with what it held, and return when it takes connections."""
        if not self._epmd.alive:
            self._epmd.start()
            self._epmd.wait_ready(lambda: _listens(self._epmd_port))
        self.process.start()
        self.process.wait_ready(self._answers, 120.0)
        return self

    def kill(self) -> None:
        """End it as a power cut does."""
        os.killpg(self.process.pid, signal.SIGKILL)  # the script and the machine that it started
        self.process.wait()
        wait_until(lambda: not _listens(self.port), 20, "the node to be gone")

    def stop(self) -> None:
        """End it for good, and at once: nothing of it is kept."""
        if self.process.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stop()
        self._epmd.stop()

    def url(self, vhost: str, password: str | None = None) -> str:
        return f"amqp://{USER}:{password or self.password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management plugin."""
        login = b64encode(f"{USER}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}/api/{path}", method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None

    def control(self, *words: str) -> str:
        """Run rabbitmqctl; it takes seconds."""
        done = subprocess.run(
            [self.programs / "rabbitmqctl", "--node", self.node, *words], env=self.environment, cwd=self.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Memory is full, as far as the node can tell."""
        self.control("set_vm_memory_high_watermark", "0.00001")
        try:
            yield
        finally:
            self.control("set_vm_memory_high_watermark", "0.4")

    def _answers(self) -> bool:
        try:
            with Connection(self.url("/"), connect_timeout=5) as connection:
                connection.connect()
            return bool(self.api("GET", "vhosts"))
        except OSError:
            return False

    def _process(self, name: str, *command: str) -> Process:
        return Process(
            name, command, log=self.folder / f"{name}.log", env=self.environment, cwd=self.folder, stop_steps=((signal.SIGKILL, 10.0),)
        )

    def _write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Message:
    """What lay in a queue."""

    id: str
    priority: int


@dataclass
class Vhost:
    """A virtual host of a test's own, and what a test looks for in it."""

    server: RabbitServer
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @contextmanager
    def channel(self) -> Iterator[Any]:
        with Connection(self.url) as connection, closing(connection.channel()) as channel:
            yield channel

    def declare(self, queue: str, **arguments: Any) -> None:
        """Make a queue, with arguments such as ``x_max_length=5``."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=named)

    def delete(self, queue: str) -> None:
        with self.channel() as channel:
            channel.queue_delete(queue)

    def purge(self, queue: str) -> None:
        with self.channel() as channel:
            channel.queue_purge(queue)

    def cut(self) -> None:
        """Close every connection of this virtual host from the server's side."""
        path = f"vhosts/{self.name}/connections"
        for one in wait_until(lambda: self.server.api("GET", path), 20, "a connection"):
            with suppress(HTTPError):  # gone already
                self.server.api("DELETE", f"connections/{quote(one['name'], safe='')}")

    def count(self, queue: str = "celery") -> int | None:
        """How many messages wait in a queue; None when it is not there."""
        with Connection(self.url) as connection:
            try:
                return int(connection.channel().queue_declare(queue, passive=True).message_count)
            except NotFound:
                return None

    def arguments(self, queue: str = "celery") -> dict[str, Any]:
        return dict(self.server.api("GET", f"queues/{self.name}/{queue}")["arguments"])

    def take(self, count: int, queue: str = "celery") -> list[Message]:
        """Take so many messages out of a queue."""
        with self.channel() as channel:
            taken = [wait_until(lambda: channel.basic_get(queue, no_ack=True), 20, f"a message in {queue}") for _ in range(count)]
        found = [channel.message_to_python(one) for one in taken]
        return [Message(one.headers["id"], one.properties.get("priority", 0)) for one in found]


@pytest.fixture(scope="session")
def rabbitmq(server_folder: Path, certificates: Certificates) -> Iterator[RabbitServer]:
    """The node of this session."""
    programs = find_programs()
    if programs is None:
        missing("rabbitmq-server", HOW_TO_GET_IT)
    server = RabbitServer(server_folder / "rabbitmq", programs, certificates).start()
    yield server
    server.stop()


@pytest.fixture
def vhost(rabbitmq: RabbitServer) -> Iterator[Vhost]:
    """A virtual host that no other test uses."""
    name = f"t{secrets.token_hex(4)}"
    rabbitmq.api("PUT", f"vhosts/{name}")
    rabbitmq.api("PUT", f"permissions/{name}/{USER}", {"configure": ".*", "write": ".*", "read": ".*"})
    yield Vhost(rabbitmq, name)
    rabbitmq.api("DELETE", f"vhosts/{name}")
