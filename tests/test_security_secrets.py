"""Servers that ask for passwords and speak TLS: who is another is refused, and no secret is to be found where it does not belong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest
from apps.sealed import TABLE
from fix_events import listening
from fix_servers import ROOT, missing, wait_for_row, wait_for_value, wait_until
from psycopg import conninfo

from bridge import schema
from bridge.local import broker as local_broker
from bridge.local.account import server_account
from bridge.local.binaries import find_postgres
from bridge.local.broker import RedisServer, find_redis, free_port
from bridge.local.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fix_calls import MakeApp
    from fix_servers import Launcher, StartDrainer, StartWorker
    from fix_tls import Certificates

# What nobody needs to see, beside the passwords of both servers.
PLANTED = {
    "BRIDGE_WEBHOOK_SECRET": "planted-webhook-secret-4711",
    "BRIDGE_SECRET_CRM": "planted-header-secret-4711",
    "BRIDGE_NOTIFIER_OPS": "json://user:planted-notifier-4711@127.0.0.1:1/x",
    "BRIDGE_WEB_TOKEN": "planted-web-token-4711",
    "BRIDGE_SIGNING_KEY": "planted-signing-key-4711-0123456789abcdef",
    "HTTPS_PROXY": "http://user:planted-proxy-4711@127.0.0.1:1",
}
WORDS = {name: value for name, value in PLANTED.items() if "://" not in value} | {"notifier": "planted-notifier", "proxy": "planted-proxy"}
STATEMENTS = ("alter system set log_statement = 'all'", "alter system set log_min_error_statement = 'debug5'", "select pg_reload_conf()")


@dataclass
class Guarded:
    """Servers with passwords, and certificates of an authority of the test's own."""

    postgres: PostgresServer
    redis: RedisServer
    tls_port: int
    authority: Path

    def dsn(self, authority: Path | None = None) -> str:
        return f"{self.postgres.dsn}?sslmode=verify-full&sslrootcert={quote(str(authority or self.authority), safe='')}"

    def broker_url(self, authority: Path | None = None) -> str:
        address = self.redis.url.replace("redis://", "rediss://").replace(f":{self.redis.port}/", f":{self.tls_port}/")
        return f"{address}?ssl_cert_reqs=required&ssl_ca_certs={quote(str(authority or self.authority), safe='')}"

    @property
    def secrets(self) -> dict[str, str]:
        return {**WORDS, "postgres": self.postgres._password, "redis": self.redis._password}


@pytest.fixture(scope="module")
def guarded(server_folder: Path, certificates: Certificates) -> Iterator[Guarded]:
    binaries, program, account = find_postgres(), find_redis(), server_account()
    if binaries is None:
        missing("postgres 15 or newer", "apt-get install postgresql-15 postgresql-15-cron")
    if program is None:
        missing("redis-server", local_broker.HOW_TO_GET_IT)
    key = server_folder / "guarded.key"
    shutil.copy(certificates.key, key)
    key.chmod(0o600)
    if account is not None:
        os.chown(key, account.uid, account.gid)
    certificate, tls_port = server_folder / "guarded.crt", free_port()
    shutil.copy(certificates.certificate, certificate)
    certificate.chmod(0o644)
    certificate.parent.chmod(0o711)
    settings = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key), "fsync": "off"}
    postgres = PostgresServer(server_folder / "guarded-pg", "shop", port=free_port(), settings=settings, binaries=binaries).start()
    keys = {
        "tls-port": str(tls_port), "tls-cert-file": str(certificates.certificate), "tls-key-file": str(certificates.key),
        "tls-ca-cert-file": str(certificates.authority), "tls-auth-clients": "no",
    }  # fmt: skip
    redis = RedisServer(server_folder / "guarded-redis", port=free_port(), settings=keys, program=program).start()
    guarded = Guarded(postgres, redis, tls_port, certificates.authority)
    schema.install(guarded.dsn())
    yield guarded
    redis.stop()
    postgres.stop()


def command(guarded: Guarded, *words: str, env: Mapping[str, str] | None = None) -> str:
    """What a command line prints, in a process of its own."""
    ours = {
        "BRIDGE_DATABASE_URL": guarded.dsn(), "BRIDGE_BROKER_URL": guarded.broker_url(), "PYTHONPATH": str(ROOT), "BRIDGE_TIMEOUT": "5",
        "BRIDGE_LOG_LEVEL": "debug",
    }  # fmt: skip
    environment = {**os.environ, **ours, **PLANTED, **(env or {})}
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def checks(text: str) -> dict[str, Any]:
    """What the doctor found, by check."""
    return {one["name"]: one for one in json.loads(text)["checks"]}


def test_a_server_whose_certificate_another_authority_signed_is_refused_in_words(guarded: Guarded, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -out {other} -days 2 -subj /CN=x"
    subprocess.run(make.split(), check=True, capture_output=True)
    wrong = {"BRIDGE_DATABASE_URL": guarded.dsn(other), "BRIDGE_BROKER_URL": guarded.broker_url(other), "BRIDGE_LOG_LEVEL": "error"}
    found = checks(command(guarded, "doctor", "--json", env=wrong))
    assert {name: found[name]["status"] for name in ("database", "broker")} == {"database": "error", "broker": "error"}
    assert "certificate verify failed" in found["database"]["found"]
    assert "certificate verify failed" in found["broker"]["found"]
    for words in (["jobs", "list"], ["install"]):
        said = command(guarded, *words, env=wrong)
        assert "certificate verify failed" in said, words
        assert not [name for name, secret in guarded.secrets.items() if secret in said], words
    elsewhere = guarded.dsn().replace("127.0.0.1", "127.0.0.2")
    assert "127.0.0.2" in command(guarded, "jobs", "list", env={"BRIDGE_DATABASE_URL": elsewhere}), "nobody listens, or another name"
    healthy = checks(command(guarded, "doctor", "--json", env={"BRIDGE_LOG_LEVEL": "error"}))
    assert (healthy["database"]["status"], healthy["broker"]["status"]) == ("ok", "ok")


def test_a_wrong_password_is_told_and_not_shown(guarded: Guarded) -> None:
    url = guarded.dsn().replace(guarded.postgres._password, "planted-wrong-4711")
    for dsn, words in ((url, "jobs list"), (url, "drain --once"), (conninfo.make_conninfo(url), "doctor --json")):
        said = command(guarded, *words.split(), env={"BRIDGE_DATABASE_URL": dsn, "BRIDGE_TIMEOUT": "2"})
        assert "password authentication failed" in said, words
        assert "planted-wrong" not in said, words


def everything(connection: psycopg.Connection[Any]) -> str:
    """All rows of all tables of the schema, and what the server tells of sessions, as text; bytes as the letters that they are."""
    connection.execute("set bytea_output = 'escape'")
    tables = connection.execute(
        "select c.oid::regclass::text from pg_class c where c.relnamespace = 'bridge'::regnamespace and c.relkind in ('r', 'p')"
    ).fetchall()
    texts = [str(connection.execute(f"select t::text from {name} t".encode()).fetchall()) for (name,) in tables]
    return "\n".join([*texts, str(connection.execute("select a::text from pg_stat_activity a").fetchall())])


def programs(launcher: Launcher) -> str:
    """The command lines of our processes and of all their children, as every user of the machine may read them."""
    pids = {process.pid for process in launcher.started if process.alive}
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if int(folder.name) in pids or parent in pids:
                lines.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return "\n".join(lines)


def messages(guarded: Guarded) -> str:
    """All that Redis holds, key by key (a DUMP of it is compressed), and what the messages among it carry."""
    with guarded.redis.client() as client:
        read: dict[bytes, Callable[[Any], Any]] = {
            b"string": client.get, b"list": lambda key: client.lrange(key, 0, -1), b"hash": client.hgetall, b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
        }  # fmt: skip
        text = str([(key, read[client.type(key)](key)) for key in client.keys("*")])
    return "\n".join([text, *(str(b64decode(body)) for body in re.findall(r'"body": "([^"]*)"', text))])


def prepare(guarded: Guarded) -> None:
    """Callbacks that need secrets, and a server that logs every statement."""
    headers = '{"Authorization": {"secret": "env:crm", "before": "Bearer "}}'
    with psycopg.connect(guarded.postgres.dsn, autocommit=True) as sql:
        for statement in (TABLE, *STATEMENTS):
            sql.execute(statement.encode())
        sql.execute("update bridge.setting set value = '[\"127.0.0.1\"]' where name = 'webhook_hosts'")
        sql.execute("select bridge.set_webhook('hook', 'http://127.0.0.1:1/x', headers => %s)", [headers])
        sql.execute("select bridge.set_notifier('ops', 'ops')")


def work(dsn: str, caller: Any) -> str:
    """A job that succeeds and one that fails, each told to nobody who answers; one waits in the broker, one in the table.

    Returns all that the database holds and shows.
    """
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("select bridge.enqueue('sealed.note', '[1]'), bridge.enqueue('sealed.note', '[]', max_attempts => 1)")
        sql.execute("select bridge.enqueue('sealed.note', '[\"in the broker\"]', queue => 'nobody')")
        wait_for_row(dsn, "select 1 from bridge.jobs where queue = 'nobody' and status = 'published'", timeout=60)
        caller.send_task("sealed.note", ["in bytes"], serializer="pickle", countdown=9999)
        ended = "select count(*) from bridge.jobs where task = 'sealed.note' and finished_at is not null"
        wait_for_value(dsn, ended, value=2, timeout=60)
        wait_for_row(dsn, "select 1 from bridge.jobs where task like 'bridge.%%' and error is not null", timeout=60)
        ssl = "select bool_and(s.ssl) from pg_stat_ssl s join pg_stat_activity a using (pid) where a.application_name like 'bridge %'"
        assert sql.execute(ssl.encode()).fetchone() == (True,), "what is ours speaks TLS"
        return everything(sql)


def answers(port: int) -> str:
    """What a drainer or `bridge web` tells over HTTP."""
    token = {"Authorization": f"Bearer {WORDS['BRIDGE_WEB_TOKEN']}"}
    texts = []
    for path in ("metrics", "health"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers=token)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                texts.append(answer.read().decode())
        except urllib.error.HTTPError as error:
            texts.append(error.read().decode())
    return "\n".join(texts)


def test_secrets_are_in_no_log_row_event_message_or_list_of_processes(
    guarded: Guarded, launcher: Launcher, drainer: StartDrainer, worker: StartWorker, make_caller: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(guarded)
    dsn, url, port = guarded.dsn(), guarded.broker_url(), free_port()
    monkeypatch.setenv("BRIDGE_DATABASE_URL", dsn)
    store = guarded.redis.url.replace("redis://", "bridge+redis://")
    env = {**PLANTED, "BRIDGE_METRICS": str(port), "BRIDGE_LOG_LEVEL": "debug", "BRIDGE_TIMEOUT": "3", "APP_BACKEND": store}
    sealed = {**env, "BRIDGE_ACCEPT": "signed"}
    seen: dict[str, str] = {}
    with listening(url) as listener:
        ours = drainer(env=env, dsn=dsn, broker_url=url)
        theirs = worker("apps.sealed", "--loglevel=DEBUG", "-E", env=sealed, dsn=dsn, broker_url=url, concurrency=1)
        seen["rows"] = work(dsn, make_caller())
    words = [sys.executable, "-m", "bridge", "web", "--listen", str(at := free_port())]
    web = launcher.start("web", words, env, dsn=dsn, broker_url=url)
    web.wait_ready(lambda: "listening on" in web.log_text(), 60)
    seen |= {"events": str(listener.heard), "http": answers(port), "web's http": answers(at), "ps": programs(launcher)}
    for words in ("doctor --json", "jobs list --json", "callbacks list --json"):
        seen[words] = command(guarded, *words.split())
    seen["redis"] = messages(guarded)
    guarded.redis.stop()
    wait_until(lambda: "outage" in ours.log_text(), 60)
    guarded.postgres.stop()
    wait_until(lambda: "heartbeat fails" in theirs.log_text(), 60)
    seen |= {"jobs without postgres": command(guarded, "jobs", "list"), "doctor without both": command(guarded, "doctor", "--json")}
    seen |= {"web without postgres": answers(at), "web": web.log_text(), "drainer": ours.log_text(), "worker": theirs.log_text()}
    seen["postgres' log"] = (guarded.postgres.directory / "postgres.log").read_text()
    assert "select bridge.enqueue" in seen["postgres' log"], "it logs statements"
    assert "TypeError" in seen["worker"], "it logs tracebacks"
    assert seen["events"] != "[]"
    assert "in the broker" in seen["redis"], "messages are read"
    assert "in bytes" in seen["rows"], "bytes are read"
    assert all(words in seen["ps"] for words in ("bridge drain", "apps.sealed worker", "bridge web")), seen["ps"]
    found = {(place, name) for place, text in seen.items() for name, secret in guarded.secrets.items() if secret in text}
    assert found == set()
