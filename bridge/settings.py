"""Settings of a process, from its environment: ``BRIDGE_DATABASE_URL``, ``BRIDGE_BROKER_URL`` and a few more; or from Django's.

What an operator changes while everything runs is not here but in table ``bridge.setting``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bridge.errors import SettingError
from bridge.frameworks import django_settings

__all__ = ["Settings", "address", "libpq_url", "load", "without_password"]

_PREFIX = "BRIDGE_"
_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^,:]*)(:(?P<port>\d*))?")  # one host of SQLAlchemy's; libpq's own list of them has commas
_HIGHEST_PORT = 65535
_FILE = "file:"
_SHORTEST_KEY = 32  # characters
_MAKE_A_KEY = "make one by: openssl rand -hex 32, and give it to drainers and workers"
# Read by the test suite and its scripts, never by the product.
_FOREIGN = re.compile(r"BRIDGE_(TEST_\w+|REQUIRE_SERVERS|ARTIFACTS)$")
# What callbacks and schedules name, read where it is used: secrets, and addresses of notifiers. And what our pages ask callers for.
_NAMED = re.compile(r"BRIDGE_(WEBHOOK_SECRET(_[A-Z][A-Z0-9_]*)?|(NOTIFIER|SECRET)_[A-Z][A-Z0-9_]*|WEB_TOKEN)$")


class Settings(BaseSettings):
    """What a process needs to know before it starts. Durations are seconds."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: str = Field(default="", repr=False, description="Postgres: a libpq URI or DSN, or SQLAlchemy's form of URL")
    broker_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False, description="the broker, as Celery takes it")
    broker_options: str = Field(
        default="",
        repr=False,
        description="JSON: the application's broker_transport_options; in it, ssl is its broker_use_ssl, and queue_arguments are those"
        " of queues that a drainer has to make",
    )
    tick: Literal["auto", "drainer", "off"] = Field(
        default="auto", description="auto: a drainer ticks when nobody else does; drainer: it always does; off: never"
    )
    events: Literal["auto", "on", "off"] = Field(
        default="auto", description="Celery's event task-sent when publishing; auto: while somebody listens; on: always; off: never"
    )
    queues: str = Field(default="", description="queues a drainer serves and looks after, separated by commas; empty: all")
    only: str = Field(default="", description="patterns of the tasks whose calls become rows, separated by commas; empty: all")
    exclude: str = Field(default="", description="patterns of tasks to leave to the broker, separated by commas; a task's option wins")
    join: Literal["auto", "off"] = Field(
        default="auto", description="auto: a plain call joins an open transaction of SQLAlchemy or Django; off: only one that it names"
    )
    shipment: int = Field(
        default=1000, ge=1, le=10_000, description="most jobs published together; more = fewer round trips, later first job"
    )
    shipment_bytes: int = Field(default=4 << 20, ge=1024, description="bytes of content after which a shipment is closed: bounds memory")
    poll: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="seconds between two looks at the queues when no NOTIFY comes; lower behind a pooler",
    )
    timeout: float = Field(default=10.0, gt=0, description="seconds any one database or broker call may take")
    start_patience: float = Field(default=5.0, ge=0, description="seconds a worker waits for Postgres before it hands a message back")
    streaming: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="seconds that a worker's process may keep results of jobs, to write many in one statement; 0: each is sent at once",
    )
    signing_key: str = Field(
        default="",
        repr=False,
        description="keys that sign messages, separated by spaces, or file:PATH of a file of such; the first signs, each is believed;"
        " empty: nothing is signed",
    )
    accept: Literal["all", "signed"] = Field(
        default="all", description="what a worker runs; signed: only what a drainer has sent that has one of its keys"
    )
    job_logs: Literal["off", "debug", "info", "warning", "error"] = Field(
        default="off", description="what a task logs by Python's logging, from this level on, goes to the log of its job; off: nothing"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="how much the log says")
    log_format: Literal["text", "json"] = Field(default="text", description="json: one object a line, for programs that read logs")
    metrics: str = Field(
        default="", description="where a drainer answers /metrics and /health: a port of the loopback, or host:port; empty: nowhere"
    )
    web: str = Field(default="8642", description="where `bridge web` listens: a port of the loopback, or host:port")
    home: str = Field(default="", description="where `bridge up` and `bridge demo` keep their servers; empty: a folder of the user's own")

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        return libpq_url(value) if value else value

    @field_validator("metrics", "web")
    @classmethod
    def _listens(cls, value: str) -> str:
        if value:
            address(value)
        return value

    @field_validator("broker_options")
    @classmethod
    def _broker_options(cls, value: str) -> str:
        _object(value)
        return value

    def changed(self, **given: Any) -> Settings:
        """The same settings but for these, which a command line has given.

        Raises:
            SettingError: one of them is not a value that it can have.
        """
        return _checked({**self.model_dump(), **given})

    def transport_options(self) -> dict[str, Any]:
        """What ``broker_options`` says; a copy."""
        return _object(self.broker_options)

    def require_database(self) -> str:
        """The database's URL.

        Raises:
            SettingError: it is not set.
        """
        if not self.database_url:
            raise SettingError("BRIDGE_DATABASE_URL is not set", "give it a libpq URI, for example postgresql://user@host/database")
        return self.database_url

    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys that sign messages; none where nothing is signed.

        Raises:
            SettingError: the file cannot be read, a key is too short, or there is none where only signed messages are accepted.
        """
        given = self.signing_key
        if given.startswith(_FILE):
            try:
                given = Path(given.removeprefix(_FILE)).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                words = f"BRIDGE_SIGNING_KEY names a file that cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
                raise SettingError(words, f"check {self.signing_key}") from None
        keys = given.split()
        if any(len(key) < _SHORTEST_KEY for key in keys):
            raise SettingError(f"BRIDGE_SIGNING_KEY has a key of fewer than {_SHORTEST_KEY} characters", _MAKE_A_KEY)
        if self.accept == "signed" and not keys:
            raise SettingError("BRIDGE_ACCEPT is signed, and BRIDGE_SIGNING_KEY has no key", _MAKE_A_KEY)
        return tuple(key.encode() for key in keys)

    def queue_names(self) -> frozenset[str]:
        """The queues to serve; empty means all."""
        return frozenset(_parts(self.queues))

    def only_names(self) -> tuple[str, ...]:
        """Patterns of the tasks to take, where the application names none."""
        return _parts(self.only)

    def exclude_names(self) -> tuple[str, ...]:
        """Patterns of tasks to leave to the broker, where the application names none."""
        return _parts(self.exclude)


def _object(text: str) -> dict[str, Any]:
    """The JSON object of a text; an empty text is an empty object."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('it is no JSON object, for example {"global_keyprefix": "shop:"}')  # noqa: TRY004 - pydantic shows this kind
    return found


def address(text: str) -> tuple[str, int]:
    """Host and port of where to listen: ``9464`` is a port of the loopback, ``0.0.0.0:9464`` and ``[::]:9464`` say where.

    Raises:
        ValueError: there is no port from 0 (any that is free) to 65535.
    """
    host, _, port = text.strip().rpartition(":")
    if not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise ValueError(f"{text!r} has no port from 0 to {_HIGHEST_PORT}: give 9464, or host:port")
    return host.strip("[]") or "127.0.0.1", int(port)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load() -> Settings:
    """Read the environment, and Django's settings for what it does not say.

    Raises:
        SettingError: a variable is unknown or its value is not one it can have.
    """
    django = {name: value for name, value in django_settings().items() if name not in os.environ}
    _refuse_unknown({*os.environ, *django})
    return _checked({name.removeprefix(_PREFIX).lower(): value for name, value in django.items()})


def _checked(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = _PREFIX + str(first["loc"][0]).upper()
        hint = Settings.model_fields[str(first["loc"][0])].description or ""
        message = str(first["msg"]).removeprefix("Value error, ")  # pydantic's own word for a ValueError of ours
        raise SettingError(f"{name} is wrong: {message[:1].lower()}{message[1:]}", hint) from None


def _refuse_unknown(names: set[str]) -> None:
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(names):
        if not name.startswith(_PREFIX) or name in known or _FOREIGN.match(name) or _NAMED.match(name):
            continue
        near = difflib.get_close_matches(name.removeprefix(_PREFIX), [field.removeprefix(_PREFIX) for field in known], n=1)
        guess = f", did you mean {_PREFIX}{near[0]}?" if near else f": known are {', '.join(sorted(known))}"
        raise SettingError(f"unknown setting {name}{guess}")


def libpq_url(url: str) -> str:
    """Bring SQLAlchemy's form (``postgresql+psycopg://``) and ``postgres://`` to what libpq takes; leave a DSN as it is.

    SQLAlchemy has several hosts one by one, each with its port: ``?host=a:5432&host=b:5432``.

    Raises:
        SettingError: it is none of these.
    """
    if "://" not in url:
        if "=" in url:
            return url
        raise SettingError(f"database url {url!r} is neither a URI nor a DSN", "write postgresql://user@host/database")
    scheme, rest = url.split("://", 1)
    if scheme.split("+")[0] not in {"postgresql", "postgres"}:
        raise SettingError(f"database url has the scheme {scheme!r}", "only Postgres will do: postgresql://user@host/database")
    return f"postgresql://{_hosts_as_libpq_takes_them(rest)}"


def _hosts_as_libpq_takes_them(rest: str) -> str:
    """Join the hosts that SQLAlchemy has one by one, each perhaps with its port, into libpq's two lists."""
    place, _, query = rest.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    hosts = [_HOST.fullmatch(value) for name, value in given if name == "host"]
    found = [(host["name"], host["port"] or "") for host in hosts if host]
    if not found or len(found) < len(hosts) or (len(found) == 1 and not found[0][1]):
        return rest
    lists = {"host": ",".join(name for name, _ in found), "port": ",".join(port for _, port in found)}
    others = [(name, value) for name, value in given if name != "host" and (name != "port" or not lists["port"].strip(","))]
    others += [(name, value) for name, value in lists.items() if value.strip(",")]
    return f"{place}?{urlencode(others, safe=',/:[]', quote_via=quote)}"


def without_password(url: str) -> str:
    """The same URL, fit to be shown; of several, separated by semicolons, each."""
    if "://" not in url:
        return re.sub(r"password\s*=\s*('[^']*'|\S+)", "password=***", url)
    return ";".join(_one_without_password(one) for one in url.split(";"))


def _one_without_password(url: str) -> str:
    head, found, rest = url.partition("://") if "://" in url else ("", "", url)
    # Up to the last @, not as the standard has it: a password with a slash in it, not percent-encoded, is one all the same.
    login, at, place = rest.rpartition("@")
    if at and ":" in login:
        rest = f"{login.partition(':')[0]}:***@{place}"
    return head + found + re.sub(r"([?&][^=&]*password[^=&]*=)[^&]*", r"\1***", rest, flags=re.IGNORECASE)
