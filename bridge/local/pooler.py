"""A pgbouncer in transaction mode before a database, where each transaction may run in another session."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING

from psycopg import conninfo

from bridge.errors import ServerError
from bridge.local.account import server_account
from bridge.local.broker import free_port
from bridge.local.process import Process
from bridge.local.server import server_environment

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HOW_TO_GET_IT", "Pooler", "find_pgbouncer"]

HOW_TO_GET_IT = "apt-get install pgbouncer"
CONFIG = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = {clients}
server_login_retry = 1
"""


def find_pgbouncer() -> str | None:
    """The program, which Debian keeps off an ordinary user's path."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class Pooler:
    """One pgbouncer.

    Args:
        dsn: the database behind it.
        folder: for its configuration and its log; it is made.
        sessions: how many the server gives it for each database and user.
        clients: how many may be connected to it.

    Raises:
        ServerError: there is no pgbouncer.
    """

    def __init__(self, dsn: str, folder: Path, *, sessions: int, clients: int = 300) -> None:
        program = find_pgbouncer()
        if program is None:
            raise ServerError("no pgbouncer here", HOW_TO_GET_IT)
        folder.mkdir(mode=0o755)
        direct, self.port = conninfo.conninfo_to_dict(dsn), free_port()
        self.dsn = conninfo.make_conninfo("", host="127.0.0.1", port=self.port, user=direct["user"], dbname=direct["dbname"])
        server = " ".join(f"{name}={direct[name]}" for name in ("host", "port", "user", "password") if direct.get(name))
        config = folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(server=server, port=self.port, sessions=sessions, clients=clients))
        self._command, self._log = [program, str(config)], folder / "log"

    def start(self) -> None:
        """Start it, unless it runs."""
        self.process = Process(
            "pgbouncer", self._command, log=self._log, env=server_environment(), account=server_account(), death_signal=signal.SIGKILL
        )
        self.process.start()

    def stop(self) -> None:
        """End it for good."""
        self.process.kill(signal.SIGCONT)
        self.process.stop()
