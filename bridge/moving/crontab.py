"""Lines of a crontab: what each would be as a schedule of a task that runs commands, or of the function that its psql calls."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from bridge.moving.call import function_schedule, parse_call
from bridge.moving.entry import Entry, NotCarriedOverError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.moving.call import Catalog

__all__ = ["Target", "entries", "local_zone"]

_SETTING = re.compile(r"""\s*(["']?)(\w+)\1\s*=\s*(.*?)\s*$""")
_NAME = re.compile(r"\s*#\s*name:\s*(\S.*?)\s*$", re.IGNORECASE)
_OUTPUT = re.compile(r"(?:(?:\s+[12&]|\s*)>>?\s*[\w./&-]+)+\s*$")
_WITH_VALUE = {"-d": "dbname", "--dbname": "dbname", "-h": "host", "--host": "host", "-p": "port", "--port": "port", "-U": "user",
    "--username": "user", "-c": "command", "--command": "command", "-v": "variable", "--set": "variable"}  # fmt: skip
_OF_ENVIRONMENT = {"PGDATABASE": "dbname", "PGHOST": "host", "PGPORT": "port", "PGUSER": "user"}
_QUIET = {"-q", "--quiet", "-X", "--no-psqlrc", "-w", "--no-password", "-A", "-t", "-At", "-tA", "-qAt", "-Atq", "-qX", "-Xq", "-1"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where commands go.

    Attributes:
        task: the task that is called with a command as its one argument; None when nobody names one.
        mapping: patterns of commands, as the shell's for files, each with its task; the first that matches wins.
        here: dbname, host and port of the database.
        catalog: the functions of the database.
        queue: the queue of the jobs of tasks.
    """

    task: str | None
    mapping: Sequence[tuple[str, str]]
    here: Mapping[str, str]
    catalog: Catalog
    queue: str = "celery"


@dataclass(slots=True)
class _State:
    """What the lines above have set."""

    timezone: str
    settings: dict[str, str] = field(default_factory=dict)
    name: str = ""
    used: set[str] = field(default_factory=set)


def local_zone() -> str:
    """The time zone of this machine's clock, which cron reads a crontab by; UTC when it has no name."""
    try:
        _, zoneinfo, name = str(Path("/etc/localtime").resolve(strict=True)).partition("zoneinfo/")
        if zoneinfo:
            return "UTC" if name in {"Etc/UTC", "UTC", "Etc/UCT"} else name
        return Path("/etc/timezone").read_text(encoding="ascii").strip() or "UTC"
    except (OSError, ValueError):
        return "UTC"


def entries(text: str, target: Target, *, timezone: str, is_system: bool = False) -> list[Entry]:
    """What the lines of a crontab become.

    Args:
        text: the crontab.
        target: where commands go.
        timezone: whose clock its lines are read by, up to a CRON_TZ.
        is_system: a column with the user stands before the command, as in /etc/crontab.
    """
    state, found = _State(timezone), []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if named := _NAME.match(line):
            state.name = named[1]
        elif setting := _SETTING.fullmatch(line):
            _set(state, setting[2], setting[3])
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(_entry(line, number, state, target, is_system=is_system))
            state.name = ""
    return found


def _set(state: _State, name: str, value: str) -> None:
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    if name == "CRON_TZ":
        state.timezone = value
    else:
        state.settings[name] = value


def _entry(line: str, number: int, state: _State, target: Target, *, is_system: bool) -> Entry:
    count = (1 if line.lstrip().startswith("@") else 5) + is_system
    words = list(re.finditer(r"\S+", line))
    entry = Entry(f"crontab line {number}", line=number)
    if len(words) <= count:
        what = "the command" if len(words) == count or not is_system else "the user or the command"
        entry.refusal = f"line {number}, character {len(line.rstrip()) + 1}: {what} is missing"
        return entry
    fields, raw = words[: count - is_system], line[words[count].start() :].strip()
    command = re.sub(r"\\%", "%", raw)
    entry.columns = tuple(word.start() + 1 for word in fields)
    entry.name = _unused(state, state.name or " ".join(command.split())[:100])
    if is_system:
        entry.notes.append(f"it ran as the machine's user {words[count - 1][0]}")
    cron = " ".join(word[0] for word in fields)
    try:
        _require_carriable(cron, raw)
        chosen = _function(command, entry, state, target) or _task(command, entry, target)
    except NotCarriedOverError as refusal:
        entry.refusal = f"line {number}, character {entry.columns[0] if cron.startswith('@') else words[count].start() + 1}: {refusal}"
        return entry
    left = sorted(name for name in state.settings if name not in _OF_ENVIRONMENT)
    if left:
        entry.notes.append(f"{', '.join(left)} of the crontab left behind: where it runs has its own environment")
    # As cron does it: no second try, what was missed stays so, and runs may overlap.
    entry.schedule = {"cron": cron, "timezone": state.timezone, **chosen, "max_attempts": 1, "missed": "skip"}
    return entry


def _require_carriable(cron: str, raw: str) -> None:
    if cron.lower() == "@reboot":
        raise NotCarriedOverError("it runs when the machine starts, which is no moment of a clock: leave it to cron or the service manager")
    if re.search(r"(?<!\\)%", raw):
        raise NotCarriedOverError("what stands after % is its standard input: make that part of the task")


def _unused(state: _State, name: str) -> str:
    wanted, count = name, 1
    while wanted.lower() in state.used:
        count += 1
        wanted = f"{name} ({count})"
    state.used.add(wanted.lower())
    return wanted


def _task(command: str, entry: Entry, target: Target) -> dict[str, Any]:
    mapped = next((task for pattern, task in target.mapping if fnmatchcase(command, pattern)), target.task)
    if mapped is None:
        why = "; ".join(entry.notes)
        raise NotCarriedOverError(
            f"{why}{'; ' if why else ''}no task runs its command: name one with --task NAME, or --map 'PATTERN=NAME' for some commands"
        )
    return {"task": mapped, "args": [command], "queue": target.queue}


def _function(command: str, entry: Entry, state: _State, target: Target) -> dict[str, Any] | None:
    """The function that a psql does nothing but call, in this database; None for other commands, with a note where psql is called."""
    try:
        words = shlex.split(_OUTPUT.sub("", command))
    except ValueError:
        return None
    if not words or PurePath(words[0]).name != "psql":
        return None
    try:
        options = {_OF_ENVIRONMENT[name]: value for name, value in state.settings.items() if name in _OF_ENVIRONMENT}
        options |= _psql_options(words[1:], command)
        _require_here(options, target.here)
        chosen = function_schedule(parse_call(options["command"]), target.catalog)
    except NotCarriedOverError as refusal:
        entry.notes.append(f"psql is not certain to call one function of this database: {refusal}")
        return None
    if "host" not in options:
        entry.notes.append(f"taken to mean this database, {options['dbname']}, because psql is given no host")
    entry.role = options.get("user", "")
    return chosen


def _require_here(options: Mapping[str, str], here: Mapping[str, str]) -> None:
    if "dbname" not in options:
        raise NotCarriedOverError("it names no database")
    if re.search("[:=/]", options["dbname"]):
        raise NotCarriedOverError("its connection string is not read: name the database alone")  # nor shown: it may hold a password
    for name in ("dbname", "host", "port"):
        if options.get(name, here[name]) != here[name]:
            raise NotCarriedOverError(f"its {name} is {options[name]}, not {here[name]}")


def _psql_options(words: list[str], command: str) -> dict[str, str]:
    # What the shell would put in place of $ and ` is not known, wherever they stand.
    if re.search(r"[$`]", command) or re.search(r"[;|&()<]", re.sub(r"'[^']*'|\"[^\"]*\"", "", _OUTPUT.sub("", command))):
        raise NotCarriedOverError("the shell does more than call psql")
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if option in _WITH_VALUE and (joined or rest):
            name, value = _WITH_VALUE[option], value if joined else rest.pop(0)
            if name in found and name != "variable":
                raise NotCarriedOverError(f"psql is given {option} twice")
            found[name] = value
        elif word in _QUIET:
            continue
        elif not word.startswith("-") and "dbname" not in found:
            found["dbname"] = word
        else:
            raise NotCarriedOverError(f"what psql does with {word} is not known here")
    if "command" not in found:
        raise NotCarriedOverError("psql is given no -c")
    return found
