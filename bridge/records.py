"""How our processes log: as text or as one JSON object a line, without secrets.

A line is written as ``log.info("published queue=%s jobs=%d", queue, jobs)``; the JSON form takes its words and its fields from that very
template, so no line is written twice. That is why no library for structured logs stands here: each wants the lines written its own way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from bridge import tracing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.settings import Settings

__all__ = ["Fields", "JsonFormatter", "Secrets", "TextFormatter", "escaped", "is_json", "set_up", "shown"]

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# A conversion of the template, with the key before it where there is one.
_CONVERSION = re.compile(r"(?:(?P<gap>^|\s)(?P<key>\w+)=)?%(?P<flags>[-+ #0-9.]*)(?P<kind>[a-zA-Z%])")
_STANDARD = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
_SECRET_NAMES = re.compile(r"(BRIDGE_\w*(SECRET|TOKEN|PASSWORD|NOTIFIER|SIGNING_KEY)\w*|PGPASSWORD|REDIS_PASSWORD)$")
_LOGIN = re.compile(r"(://[^\s:/@]*:)[^\s@]+(?=@)")  # of a URL
_PASSWORD = re.compile(r"(\bpassword\s*=\s*)('[^']*'|[^\s&;]+)", re.IGNORECASE)  # of a DSN, or in a URL's query
_SHORTEST = 4  # characters: a shorter secret would blot out half of the text


# What moves a cursor, colours a terminal or turns its direction, and what is shown instead: texts come from whoever makes jobs.
_STEERING = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_STEERING |= {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_ESCAPED = {code: f"\\u{code:04x}" for code in _STEERING if code >= 0x7F}  # noqa: PLR2004 - JSON's own rules end below DEL


def shown(text: str) -> str:
    """A text that may be anybody's, fit for a terminal: what would steer it is spelt out."""
    return text.translate(_STEERING)


def escaped(document: str) -> str:
    """The same of a JSON document, which stays one and says the same."""
    return document.translate(_ESCAPED)


class Fields(dict[str, Any]):
    """Several fields of a line whose names are not known beforehand: text shows them as ``key=value``."""

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.items())


class Secrets:
    """What must not be seen: passwords and tokens of this process' environment, and whatever looks like the password of an address."""

    def __init__(self, environment: Mapping[str, str], *urls: str) -> None:
        named = [word for name, value in environment.items() if _SECRET_NAMES.match(name) for word in {value, *value.split()}]
        logins = [word for url in urls for word in _words(url)]
        known = sorted({word for word in [*named, *logins] if len(word) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(word) for word in known)) if known else None

    def hide(self, text: str) -> str:
        """The text with stars in their places."""
        if self._known is not None:
            text = self._known.sub("***", text)
        return _PASSWORD.sub(r"\1***", _LOGIN.sub(r"\1***", text))


def _words(url: str) -> Iterable[str]:
    """The password of an address, as it is written and as it is meant."""
    for found in [*re.findall(r"://[^\s:/@]*:([^\s@]+)@", url), *re.findall(r"password\s*=\s*'?([^\s'&;]+)", url)]:
        yield from (found, unquote(found))


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__(_TEXT)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """One record; what it raises has lines of its own."""
        return self._secrets.hide(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Its words, on one line."""
        return shown(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """What it raises, on lines of its own."""
        return shown(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields of the event, and the trace that it belongs to."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        words, fields = _parts(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": words,
        }  # fmt: skip
        ids = tracing.current_ids()
        if ids is not None:
            line |= {"trace_id": ids[0], "span_id": ids[1]}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in fields.items() if name not in line}
        return escaped(json.dumps({name: self._plain(value) for name, value in line.items()}, ensure_ascii=False))

    def _plain(self, value: Any) -> Any:
        return value if value is None or isinstance(value, bool | int | float) else self._secrets.hide(str(value))


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The words of a line and its fields; of a template that cannot be taken apart, the whole text."""
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    # Logging unpacks an argument that is the only one and a mapping.
    args = record.args if isinstance(record.args, tuple) else (record.args,) if isinstance(record.args, Fields) else ()
    found = _CONVERSION.finditer(record.msg) if isinstance(record.msg, str) else ()
    values = [one for one in found if one["kind"] != "%"]
    if not values or len(values) != len(args):
        return record.getMessage(), fields
    words, end = [], 0
    for match, value in zip(values, args, strict=True):
        words.append(record.msg[end : match.start()])
        end = match.end()
        if isinstance(value, Fields):
            fields |= value
        elif match["key"]:
            fields[match["key"]] = value
        else:
            words.append(f"%{match['flags']}{match['kind']}" % value)
    return " ".join("".join([*words, record.msg[end:]]).replace("%%", "%").split()), fields


def is_json() -> bool:
    """Whether this process logs one JSON object a line."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def set_up(settings: Settings) -> None:
    """Let this process log to standard error as its settings say."""
    secrets = Secrets(os.environ, settings.database_url, settings.broker_url)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(secrets) if settings.log_format == "json" else TextFormatter(secrets))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
