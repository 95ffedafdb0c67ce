"""SQL that does nothing but call one function with constants: what it calls, so that a schedule can call it instead."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.moving.entry import NotCarriedOverError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Catalog(Protocol):
        """What the database knows."""

        def signatures(self, schema: str | None, name: str) -> Sequence[tuple[str, list[list[str]]]]:
            """The schema, and names and types of what goes in, of each function of this name; without a schema those that are visible."""

        def type_name(self, text: str) -> str | None:
            """The name by which the database calls a type; None when there is none."""


__all__ = ["Call", "function_schedule", "parse_call", "wrapped"]

_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n]*|/\*.*?\*/)|(?P<string>'(?:[^']|'')*')|\$(?P<tag>\w*)\$(?P<dollar>.*?)\$(?P=tag)\$
    |(?P<quoted>"(?:[^"]|"")+")|(?P<word>[^\W\d][\w$]*)|(?P<number>\d+(?:\.\d+)?)|(?P<sign>::|:=|=>|.)""",
    re.VERBOSE | re.DOTALL,
)
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_NO_FUNCTION = re.compile(
    r"\s*(vacuum|(create|drop|re)\s*index\s.*concurrently|commit|alter\s+system|create\s+database|drop\s+database)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Argument:
    """A constant that is passed to a function, perhaps by name, perhaps with a cast."""

    name: str
    value: Any
    cast: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one function with constants; schema is None where none is written."""

    schema: str | None
    name: str
    arguments: tuple[Argument, ...]


class _Words:
    """The tokens of a statement, one after the other."""

    def __init__(self, text: str) -> None:
        self._tokens = [
            (str(found.lastgroup), found[0] if found.lastgroup != "dollar" else found["dollar"])
            for found in _TOKEN.finditer(text)
            if found.lastgroup != "skip"
        ]

    def peek(self, ahead: int = 0) -> str:
        """The token as written, in lower case; empty at the end and for strings."""
        kind, text = self.look(ahead)
        return text.lower() if kind in {"word", "number", "sign"} else ""

    def look(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[ahead] if ahead < len(self._tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        found = self.look()
        self._tokens = self._tokens[1:]
        return found

    def accept(self, *words: str) -> bool:
        """Take these tokens when they come next."""
        if [self.peek(place) for place in range(len(words))] != list(words):
            return False
        self._tokens = self._tokens[len(words) :]
        return True

    def identifier(self) -> str | None:
        kind, text = self.look()
        if kind not in {"word", "quoted"}:
            return None
        self.take()
        return text.lower() if kind == "word" else text[1:-1].replace('""', '"')


def parse_call(text: str) -> Call:
    """Read ``select fn(…)`` or ``select * from fn(…)`` with constants as arguments.

    Raises:
        NotCarriedOverError: it is anything else.
    """
    words = _Words(text)
    if words.accept("call"):
        raise NotCarriedOverError("it calls a procedure, not a function")
    is_call = words.accept("select", "*", "from") or words.accept("select")
    first = words.identifier() if is_call else None
    second = words.identifier() if first is not None and words.accept(".") else None
    if first is None or not words.accept("("):
        raise NotCarriedOverError("it is SQL text, not the call of one function")
    arguments = _arguments(words)
    if words.accept("as") or words.look()[0] in {"word", "quoted"}:
        words.identifier()
    while words.accept(";"):
        pass
    if words.look()[0] != "end":
        raise NotCarriedOverError("it is more than the call of one function")
    return Call(None if second is None else first, second or first, tuple(arguments))


def _arguments(words: _Words) -> list[Argument]:
    found: list[Argument] = []
    if words.accept(")"):
        return found
    while True:
        found.append(_argument(words, len(found) + 1))
        if words.accept(")"):
            return found
        if not words.accept(","):
            raise NotCarriedOverError(f"its argument {found[-1].name or len(found)} is an expression, not a constant")


def _argument(words: _Words, place: int) -> Argument:
    name = ""
    if words.peek(1) in {":=", "=>"}:
        name = words.identifier() or ""
        words.take()
    cast = ""
    if words.look()[0] == "word" and words.look(1)[0] == "string" and words.peek() != "e":
        cast = words.identifier() or ""
    value = _constant(words, name or str(place))
    while words.accept("::"):
        if cast:
            raise NotCarriedOverError(f"its argument {name or place} is cast more than once")
        cast = _type(words)
    return Argument(name, value, cast)


def _constant(words: _Words, which: str) -> Any:
    minus = words.accept("-")
    kind, text = words.take()
    if kind == "number":
        text = f"-{text}" if minus else text
        return int(text) if "." not in text else text  # a fraction as text: its digits stay what they are
    if not minus and kind == "string":
        return text[1:-1].replace("''", "'")
    if not minus and kind == "dollar":
        return text
    if not minus and kind == "word" and text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    raise NotCarriedOverError(f"its argument {which} is an expression, not a constant")


def _type(words: _Words) -> str:
    """A type as it is written after ``::``, up to the end of the argument."""
    parts: list[str] = []
    depth = 0
    while words.look()[0] != "end" and words.peek() != "::" and (depth or words.peek() not in {",", ")"}):
        text = words.take()[1]
        depth += {"(": 1, ")": -1}.get(text, 0)
        parts.append(text)
    return " ".join(parts).replace(" . ", ".")


def function_schedule(call: Call, catalog: Catalog) -> dict[str, Any]:
    """What of ``bridge.schedule`` calls this function with these constants: function, args and kwargs.

    Raises:
        NotCarriedOverError: there is no such function, or it is not certain that the call would mean the same.
    """
    written = f"{call.schema}.{call.name}" if call.schema else call.name
    found = catalog.signatures(call.schema, call.name)
    if not found:
        raise NotCarriedOverError(f"function {written} does not exist here")
    if len(found) > 1:
        raise NotCarriedOverError(f"function {written} exists {len(found)} times: name one by its signature")
    schema, parameters = found[0]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for place, argument in enumerate(call.arguments):
        named = {name: kind for name, kind in parameters if name}
        kind = named.get(argument.name) if argument.name else parameters[place][1] if place < len(parameters) else None
        if kind is None:
            raise NotCarriedOverError(f"function {written} has no argument {argument.name or place + 1}")
        value = _value(argument, kind, catalog)
        if argument.name:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return {"function": f"{_quoted(schema)}.{_quoted(call.name)}", "args": args, "kwargs": kwargs}


def _value(argument: Argument, kind: str, catalog: Catalog) -> Any:
    # A cast with a length or a precision, varchar(3), may change the constant.
    if argument.cast and ("(" in argument.cast or catalog.type_name(argument.cast) != kind):
        raise NotCarriedOverError(f"a constant is cast to {argument.cast}, its function takes {kind}")
    if isinstance(argument.value, str) and kind in {"json", "jsonb"}:
        try:
            return json.loads(argument.value)
        except ValueError as error:
            raise NotCarriedOverError(f"a constant is no {kind}: {error}") from error
    if isinstance(argument.value, str) and kind.endswith("[]"):
        raise NotCarriedOverError(f"a constant of type {kind} is written as text: give the schedule a JSON array")
    return argument.value


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def wrapped(name: str, command: str) -> str:
    """What to do about SQL text: the function to wrap it into, or why none can hold it."""
    if _NO_FUNCTION.match(command):
        return "it cannot run within a function: leave it to pg_cron"
    own = "public." + (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "job")
    own = re.sub(r"\.(\d)", r".job_\1", own)[:60]
    tag = "$do$" if "$do$" not in command else "$do_as_before$"
    text = f"create function {own}() returns void language sql as {tag} {command.strip().rstrip(';')} {tag}"
    committing = " (a procedure that commits cannot be called so)" if command.strip().lower().startswith("call") else ""
    return f"wrap it into a function, and schedule that with --function {own}: {text}{committing}"
