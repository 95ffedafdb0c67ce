"""Where a broker is, and how it is spoken to: what Celery spreads over broker_url, broker_transport_options and broker_use_ssl."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kombu import Connection

from bridge.errors import SettingError
from bridge.settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.settings import Settings

__all__ = ["Address"]

_CHECK = "check BRIDGE_BROKER_URL and BRIDGE_BROKER_OPTIONS"
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True)
class Address:
    """One broker, or several of which one is in charge.

    Attributes:
        url: as Celery takes it; several are separated by semicolons.
        timeout: seconds for connecting and for each call.
        options: Celery's ``broker_transport_options``.
        tls: Celery's ``broker_use_ssl``; None leaves it to the URL.
        queue_arguments: of queues that have to be made and that no caller has described.
    """

    url: str
    timeout: float
    options: dict[str, Any] = field(default_factory=dict)
    tls: Any = None
    queue_arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Address:
        """The broker that the settings name.

        Raises:
            SettingError: a URL cannot be read.
        """
        for one in settings.broker_url.split(";"):
            _must_parse(one)
        options = settings.transport_options()
        tls, arguments = options.pop("ssl", None), options.pop("queue_arguments", None)
        return cls(settings.broker_url, settings.timeout, options, _tls(tls), _mapping("queue_arguments", arguments))

    @property
    def shown(self) -> str:
        """The URL, fit to be shown."""
        return without_password(self.url)

    def with_defaults(self, **defaults: Any) -> Address:
        """The same with transport options that hold where none are given."""
        return Address(self.url, self.timeout, {**defaults, **self.options}, self.tls, self.queue_arguments)

    def with_options(self, **options: Any) -> Address:
        """The same with these transport options, whatever is given."""
        return Address(self.url, self.timeout, {**self.options, **options}, self.tls, self.queue_arguments)

    def connection(self) -> Connection:
        """A connection that is not open yet.

        Raises:
            SettingError: the transport is none that kombu knows, or its library is missing.
        """
        try:
            # Each gets its own: kombu keeps what it is given, and some transports change it.
            made = Connection(
                self.url, connect_timeout=self.timeout, transport_options=dict(self.options), ssl=self.tls or False,
                # kombu would take the unkept librabbitmq where that is installed, which knows no confirmations.
                transport="pyamqp" if self.url.startswith("amqp://") else None,
            )  # fmt: skip
            made.transport  # noqa: B018 - reading it finds the transport, and its library
        except (KeyError, ValueError, TypeError, ImportError) as error:
            raise self.unusable(error) from error
        return made

    def unusable(self, error: Exception) -> SettingError:
        """The error for an address that can never work."""
        return SettingError(f"broker {self.shown} cannot be used: {self.hide(error)}", _CHECK)

    def hide(self, words: object) -> str:
        """What an error says, without any password of this address."""
        text = str(words)
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def _secrets(self) -> Iterator[str]:
        for one in self.url.split(";"):
            if password := urlsplit(one).password:
                yield from {password, unquote(password)}
        yield from _passwords_in(self.options)


def _must_parse(url: str) -> None:
    """Refuse a URL whose user or password holds characters that divide URLs: kombu's words would show parts of the password."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it parses it
    except ValueError:
        parts = None
    if parts is None or ("@" in url and "@" not in parts.netloc and ":" in parts.netloc):
        hint = "percent-encode what divides URLs in its user and password: %2F for /, %3F for ?, %23 for #, %40 for @"
        raise SettingError(f"broker url {without_password(url)} cannot be read", hint)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise SettingError(f"{name} in BRIDGE_BROKER_OPTIONS is {value!r}", 'give an object, for example {"x-queue-type": "quorum"}')
    return value or {}


def _tls(value: Any) -> Any:
    """JSON has no constants of the module ssl: names stand for them, for RabbitMQ as in Redis's URLs."""
    if not isinstance(value, dict) or "cert_reqs" not in value:
        return value
    name = str(value["cert_reqs"]).removeprefix("CERT_").lower()
    if name not in _VERIFY:
        raise SettingError(f"cert_reqs in BRIDGE_BROKER_OPTIONS is {value['cert_reqs']!r}", f"known are {', '.join(_VERIFY)}")
    return {**value, "cert_reqs": _VERIFY[name]}


def _passwords_in(options: Any) -> Iterator[str]:
    if isinstance(options, dict):
        for name, value in options.items():
            if isinstance(value, str) and value and "password" in name.lower():
                yield value
            else:
                yield from _passwords_in(value)
